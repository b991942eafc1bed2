"""The model's forward compiled by torch.compile, with paged attention as one opaque operator in it.

A graph is compiled for shapes, so steps are padded to the next size that was warmed up: powers of two of tokens, unless
the settings ask for dynamic shapes. What the operator needs of the present step reaches it beside the graph, since the
graph may see only tensors of fixed shapes. Used by the initializers; the load check covers the result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from transformers import AttentionInterface

from model_registry.schema import TorchCompile
from workers.errors import LoadError
from workers.runners import attention

NAME: Final = "aviary_paged_compiled"
CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
MAX_GRAPHS: Final = 64
"""torch.compile gives up after eight shapes unless told; there is one per power of two."""

MAX_LOGITS_ROWS: Final = 64
"""Of a step, unless its sequences are more: enough for prompts whose own tokens are scored."""

_present = threading.local()


@contextmanager
def present_step(step: attention.PagedStep | attention.PackedStep, num_rows: int) -> Iterator[None]:
    """Inside, this is the step that `compiled_attention` attends in; the rest of its rows is padding."""
    _present.step, _present.num_rows = step, num_rows
    try:
        yield
    finally:
        del _present.step


_library: Final = torch.library.Library("aviary", "FRAGMENT")
_library.define(
    "paged_attention(Tensor query, Tensor key, Tensor value, int layer, float scaling) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)


@torch.library.impl(_library, "paged_attention", "CompositeExplicitAutograd")
def _paged_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
) -> torch.Tensor:
    """Attention of the present step's rows, `[1, T, H, D]`; rows beyond them are padding and come out as zeros.

    Reads and writes the KV cache behind the graph's back, hence never inside a CUDA graph; nothing else touches it.
    """
    step: attention.PagedStep | attention.PackedStep = _present.step
    num_rows: int = _present.num_rows
    rows = attention.attend(
        layer, query[:, :, :num_rows], key[:, :, :num_rows], value[:, :, :num_rows], step=step, scaling=scaling
    )
    return F.pad(rows, (0, 0, 0, 0, 0, query.shape[2] - num_rows))


@torch.library.register_fake("aviary::paged_attention", lib=_library)
def _shape_of_result(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float
) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])


def compiled_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **_arguments: Any,
) -> tuple[torch.Tensor, None]:
    """As `attention.paged_attention`, which has run on this model before and refused what it cannot do."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return torch.ops.aviary.paged_attention(query, key, value, module.layer_idx, scaling), None


AttentionInterface.register(NAME, compiled_attention)


class CompiledForward:
    """`Forward` over one graph per step size. Compiling happens in `warm_up`, or at a size's first use."""

    def __init__(
        self, model: Any, device: torch.device, settings: TorchCompile, *, max_batch_size: int, max_batch_tokens: int
    ) -> None:
        check_backend(settings)
        model.set_attn_implementation(NAME)
        self._model = model
        torch._dynamo.config.recompile_limit = MAX_GRAPHS  # noqa: SLF001  documented under this name
        self._forward = torch.compile(
            model.forward,
            backend=settings.backend,
            mode=settings.mode,
            fullgraph=settings.fullgraph,
            dynamic=settings.dynamic,
            options=settings.options,
        )
        self._device = device
        self._sizes = [] if settings.dynamic else step_sizes(max(max_batch_tokens, max_batch_size))
        self._max_rows = max(max_batch_size, MAX_LOGITS_ROWS)

    @property
    def sizes(self) -> Sequence[int]:
        """Tokens of the steps that have a graph of their own; none with dynamic shapes."""
        return self._sizes

    def __call__(
        self, token_ids: list[int], positions: list[int], last_rows: list[int], step: attention.PagedStep
    ) -> torch.Tensor:
        num_rows = len(token_ids)
        size = next((size for size in self._sizes if size >= num_rows), num_rows)
        # Always as many logits rows for a size, so that their number makes no further graph.
        num_last = min(size, self._max_rows) if self._sizes else self._max_rows
        with present_step(step, num_rows):
            output = self._forward(
                input_ids=self._padded(token_ids, size)[None],
                position_ids=self._padded(positions, size)[None],
                use_cache=False,
                logits_to_keep=self._padded(last_rows, num_last),
            )
        logits: torch.Tensor = output.logits[0, : len(last_rows)]
        return logits

    def _padded(self, numbers: list[int], size: int) -> torch.Tensor:
        return torch.tensor(numbers + [0] * (size - len(numbers)), device=self._device, dtype=torch.long)


def step_sizes(max_tokens: int) -> list[int]:
    """Powers of two up to the first that holds the largest step."""
    sizes = [1]
    while sizes[-1] < max_tokens:
        sizes.append(2 * sizes[-1])
    return sizes


def check_backend(settings: TorchCompile) -> None:
    known = torch._dynamo.list_backends(exclude_tags=())  # noqa: SLF001  documented under this name
    if settings.backend not in known:
        raise LoadError(f"initializer.torch_compile.backend {settings.backend!r} is none of {', '.join(known)}")


def keep_graphs_in(folder: Path) -> None:
    """Where compiled code is kept, so that the next replica on this node finds it; a user's own choice wins."""
    os.environ.setdefault(CACHE_VARIABLE, str(folder))
