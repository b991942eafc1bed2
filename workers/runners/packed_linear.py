"""Linear layers for the CPU with their weights in oneDNN's own layout.

Decoding multiplies a few rows by every weight of the model, and for few rows the plain layout leaves much of the
memory bandwidth unused: packed once at load, a float32 step of eight sequences takes about half the time. The operators
are those that torch.compile emits for frozen weights. Used by the initializers; the load check covers the result.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Final

import torch

NUM_ROWS_HINT = 8
"""Rows that the packed layout is chosen for; it serves other numbers too."""

_library: Final = torch.library.Library("aviary", "FRAGMENT")
_library.define("packed_linear(Tensor inputs, int number, int out_features) -> Tensor")
_numbers: Final = itertools.count()
_layers: Final[weakref.WeakValueDictionary[int, PackedLinear]] = weakref.WeakValueDictionary()
"""By the number that compiled graphs know them by: a packed weight is of a kind that no graph takes as its input."""


class PackedLinear(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
    """`x Wᵀ + b`, as the `torch.nn.Linear` it is made from."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self._packed_weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), NUM_ROWS_HINT)  # noqa: SLF001
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._out_features = linear.out_features
        self._number = next(_numbers)
        _layers[self._number] = self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs `[..., in_features]`, result `[..., out_features]`."""
        if torch.compiler.is_compiling():
            return torch.ops.aviary.packed_linear(inputs, self._number, self._out_features)
        return self.multiply(inputs)

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed_weight, self._bias, "none", [], "")  # noqa: SLF001


@torch.library.impl(_library, "packed_linear", "CPU")
def _multiply(inputs: torch.Tensor, number: int, _out_features: int) -> torch.Tensor:
    return _layers[number].multiply(inputs)


@torch.library.register_fake("aviary::packed_linear", lib=_library)
def _shape_of_product(inputs: torch.Tensor, _number: int, out_features: int) -> torch.Tensor:
    return inputs.new_empty(*inputs.shape[:-1], out_features)


def pack_linears(model: torch.nn.Module) -> int:
    """Replace the model's float32 linear layers on the CPU; returns how many. Changes nothing without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)
