"""Runs a Transformers causal language model over a paged KV cache.

Any model whose attention goes through Transformers' `AttentionInterface` works unchanged; `check_against_own_attention`
proves it for the loaded one before it serves. Knows chunks and tensors; no requests, no text, no sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch

from workers.engine.runner import Chunk, StepPlan
from workers.errors import DeviceLostError, UnsupportedModelError
from workers.runners import attention

BLOCK_SIZE = 16
NUM_CHECKED_TOKENS = 24


class Forward(Protocol):
    """Runs the model on one packed row of tokens."""

    def __call__(
        self, token_ids: list[int], positions: list[int], last_rows: list[int], step: attention.PagedStep
    ) -> torch.Tensor:
        """Logits `[len(last_rows), vocab_size]` of these rows."""


class EagerForward:
    """The model's own forward, operator by operator."""

    def __init__(self, model: Any, device: torch.device) -> None:
        model.set_attn_implementation(attention.NAME)
        self._model = model
        self._device = device

    def __call__(
        self, token_ids: list[int], positions: list[int], last_rows: list[int], step: attention.PagedStep
    ) -> torch.Tensor:
        output = self._model(
            input_ids=torch.tensor([token_ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(last_rows, device=self._device, dtype=torch.long),
            step=step,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


class TransformersRunner:
    """A model on its device or devices, together with its KV cache."""

    def __init__(
        self, forward: Forward, layers: Sequence[attention.LayerShape], *, num_kv_blocks: int, max_model_len: int
    ) -> None:
        """`layers` as `measure_layers` found them."""
        self._forward = forward
        self._shapes = layers
        self._layers: list[attention.LayerCache] = []
        self.num_kv_blocks = 0
        """Of `BLOCK_SIZE` tokens."""
        self.resize(num_kv_blocks=num_kv_blocks, max_model_len=max_model_len)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> torch.Tensor:
        """Logits `[num_rows, vocab_size]` in float32, as the plan wants them."""
        order, groups = attention.pack(plan.chunks)
        packed = [plan.chunks[index] for index in order]
        rows = attention.row_slices(packed)
        logits = self._logits(packed, rows, self._step(packed, rows, [len(group) for group in groups]))
        return logits[_in_plan_order(plan.chunks, order)].float()

    def resize(self, *, num_kv_blocks: int, max_model_len: int) -> None:
        """Have a KV cache of so many blocks; one of another size is given back first, and the new one is empty."""
        self._max_model_len = max_model_len
        if num_kv_blocks == self.num_kv_blocks:
            return
        self.num_kv_blocks = 0
        self._layers.clear()
        self._layers.extend(_layer_cache(shape, num_kv_blocks) for shape in self._shapes)
        self._layouts = {cache.layout for cache in self._layers}
        self.num_kv_blocks = num_kv_blocks

    def use(self, forward: Forward) -> None:
        """Run the same model another way from now on; the KV cache stays."""
        self._forward = forward

    def warm_up(self, num_tokens: int) -> None:
        """Run a step of so many tokens of no sequence, as far as the KV cache holds them."""
        num_tokens = min(num_tokens, self.num_kv_blocks * BLOCK_SIZE)
        block_ids = range(-(-num_tokens // BLOCK_SIZE))
        self.run(StepPlan([Chunk([0] * num_tokens, 0, block_ids, num_logits=1)]))

    def _step(self, packed: Sequence[Chunk], rows: Sequence[slice], group_sizes: Sequence[int]) -> attention.PagedStep:
        return attention.PagedStep(
            layers=self._layers,
            indices={layout: layout.indices(packed, rows, group_sizes) for layout in self._layouts},
            max_model_len=self._max_model_len,
        )

    def _logits(self, packed: Sequence[Chunk], rows: Sequence[slice], step: attention.PagedStep) -> torch.Tensor:
        token_ids = [token_id for chunk in packed for token_id in chunk.token_ids]
        positions = [position for chunk in packed for position in range(chunk.start, chunk.end)]
        try:
            return self._forward(token_ids, positions, _last_rows(packed, rows), step)
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error).partition("\n")[0]) from error


@torch.inference_mode()
def measure_layers(model: Any) -> list[attention.LayerShape]:
    """The shape of each attention layer, found by running two tokens. Raises `UnsupportedModelError`.

    Leaves the model's own attention as it was.
    """
    probe = attention.Probe()
    own = model.config._attn_implementation  # noqa: SLF001  where Transformers keeps it
    model.set_attn_implementation(attention.PROBE_NAME)
    try:
        model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device), use_cache=False, probe=probe)
    finally:
        model.set_attn_implementation(own)
    shapes, num_layers = probe.shapes, model.config.get_text_config().num_hidden_layers
    if sorted(shapes) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{type(model).__name__} has {num_layers} layers, of which {len(shapes)} accept an attention function "
            "from outside"
        )
    return [shapes[index] for index in range(num_layers)]


def check_against_own_attention(model: Any, runner: TransformersRunner, expected: torch.Tensor) -> None:
    """Compare the paged runner with the model's own attention, `expected` being `reference_logits(model)`.

    Prefills in two chunks and decodes one token, so every path of the attention is taken. Raises
    `UnsupportedModelError` when the logits differ by more than rounding.
    """
    token_ids = _checked_token_ids(model.config)
    block_ids = range(-(-NUM_CHECKED_TOKENS // BLOCK_SIZE))
    borders = (0, NUM_CHECKED_TOKENS // 3, NUM_CHECKED_TOKENS - 1, NUM_CHECKED_TOKENS)
    for start, end in pairwise(borders):
        logits = runner.run(StepPlan([Chunk(token_ids[start:end], start, block_ids, num_logits=1)]))[0]
    tolerance = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(expected.abs().max())
    difference = float((logits - expected).abs().max())
    if not difference <= tolerance:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run on paged attention: its logits are off by {difference:.3g} "
            f"where rounding explains {tolerance:.3g}"
        )


@torch.inference_mode()
def reference_logits(model: Any) -> torch.Tensor:
    """Logits `[vocab_size]` after a fixed prompt, by the attention the model came with."""
    token_ids = torch.tensor([_checked_token_ids(model.config)], device=model.device)
    logits: torch.Tensor = model(input_ids=token_ids, use_cache=False).logits[0, -1].float()
    return logits


def _checked_token_ids(config: Any) -> list[int]:
    vocab_size = config.get_text_config().vocab_size
    return [(17 + 7919 * position) % vocab_size for position in range(NUM_CHECKED_TOKENS)]


def _in_plan_order(chunks: Sequence[Chunk], order: Sequence[int]) -> list[int]:
    """Where the logits rows of the chunks are among those of the same chunks in another order."""
    ends = accumulate(chunks[index].num_logits for index in order)
    end_of = dict(zip(order, ends, strict=True))
    return [row for index, chunk in enumerate(chunks) for row in range(end_of[index] - chunk.num_logits, end_of[index])]


def _last_rows(packed: Sequence[Chunk], rows: Sequence[slice]) -> list[int]:
    """The packed row of each wanted logits row; when none is wanted, any one, since models compute at least one."""
    wanted = zip(packed, rows, strict=True)
    return [row for chunk, at in wanted for row in range(at.stop - chunk.num_logits, at.stop)] or [0]


def _layer_cache(shape: attention.LayerShape, num_blocks: int) -> attention.LayerCache:
    size = (num_blocks, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    return attention.LayerCache(
        keys=_zeros(size, shape.dtype, shape.device),
        values=_zeros(size, shape.dtype, shape.device),
        layout=attention.CacheLayout(shape.num_kv_heads, BLOCK_SIZE, shape.dtype, shape.device),
    )


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that take memory only when written, where the host allows it: a KV cache is mostly empty."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    untouched = torch.from_numpy(np.zeros(math.prod(size) * dtype.itemsize, dtype=np.uint8))
    return untouched.view(dtype).view(size)
