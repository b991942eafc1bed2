"""Attention over a paged KV cache, registered with Transformers under `NAME`.

One packed row `[1, T]` holds a step's tokens: first the decoding sequences, sorted by length, then prefill chunks. Each
layer writes its new keys and values into the blocks and attends: decodes in groups of similar length, padded
to the longest of the group; prefill chunks one by one. Called by Transformers inside `TransformersRunner.run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from transformers import AttentionInterface

from workers.engine.runner import Chunk
from workers.errors import UnsupportedModelError

NAME = "aviary_paged"
PROBE_NAME = "aviary_probe"
REFUSED_ARGUMENTS = ("softcap", "s_aux", "position_bias")
"""What some models ask of their attention that this one does not do; such a model is refused when it is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one attention layer of a loaded model really computes, whatever its config says.

    A tensor-parallel rank has some of the heads; with a device map each layer has a device of its own.
    """

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        itemsize: int = self.dtype.itemsize
        return 2 * self.num_kv_heads * self.head_dim * itemsize


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, `[num_blocks, H_kv, block_size, head_dim]` each.

    Heads come before positions, so that gathered blocks are what a batched matrix product reads best.
    """

    keys: torch.Tensor
    values: torch.Tensor
    layout: CacheLayout


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decoding sequences of similar length."""

    rows: slice
    """Their rows in the packed step."""
    head_blocks: torch.Tensor
    """`[B * H_kv * num_blocks]`: their blocks, head by head, each padded with its own first one; see `_gather`."""
    bias: torch.Tensor
    """`[B * H_kv, 1, num_blocks * block_size]`: 0 where a key exists, else minus infinity."""


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One prefill chunk."""

    rows: slice
    head_blocks: torch.Tensor | None
    """Blocks of its sequence up to the chunk's end, head by head; None when the chunk is the whole context."""
    mask: torch.Tensor | None
    """`[num_rows, end]` with head_blocks."""


@dataclass(frozen=True, slots=True)
class StepIndices:
    """One step's chunks as indices into the caches of one layout."""

    slots: torch.Tensor
    """`[T * H_kv]`: where each row's keys and values go, head by head, in the cache flattened over heads and blocks."""
    fresh_blocks: torch.Tensor
    """Blocks that sequences enter with this step and do not fill: what their last owner left there is cleared.

    Masked keys weigh nothing, but nothing times another request's infinity would not be nothing.
    """
    decodes: Sequence[DecodeGroup]
    prefills: Sequence[PrefillSpan]


@dataclass(frozen=True, slots=True)
class PagedStep:
    """One step as the attention layers need it."""

    layers: Sequence[LayerCache]
    indices: Mapping[CacheLayout, StepIndices]
    """Of every layout that a layer has: one, unless the model is spread over devices."""
    max_model_len: int


@dataclass(frozen=True, slots=True)
class PackedStep:
    """Whole prompts side by side that are not gone on with: no KV cache is read or written."""

    rows: Sequence[slice]
    """Of each prompt in the packed step."""
    max_model_len: int
    """Tokens of the longest."""


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    step: PagedStep | PackedStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as Transformers calls it. Raises `UnsupportedModelError` for what it cannot do."""
    _refuse(step, sliding_window, arguments)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(module.layer_idx, query, key, value, step=step, scaling=scaling), None


def attend(
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    step: PagedStep | PackedStep,
    scaling: float,
) -> torch.Tensor:
    """Write a layer's new keys and values, `[1, H_kv, T, D]` each, and attend with query `[1, H, T, D]`.

    Returns `[1, T, H, D]`. A packed step has nothing to write to.
    """
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if isinstance(step, PackedStep):
        return torch.cat([_causal(query[rows], key[rows], value[rows], scaling) for rows in step.rows])[None]
    cache = step.layers[layer]
    indices = step.indices[cache.layout]
    for blocks, new in ((cache.keys, key), (cache.values, value)):
        if len(indices.fresh_blocks):
            blocks.index_fill_(0, indices.fresh_blocks, 0)
        blocks.flatten(0, 2).index_copy_(0, indices.slots, new.flatten(0, 1))
    parts = [_decode(query[group.rows], cache, group, scaling) for group in indices.decodes]
    parts += [
        _prefill(query[span.rows], key[span.rows], value[span.rows], cache, span, scaling) for span in indices.prefills
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None]


@dataclass(frozen=True, slots=True)
class Probe:
    """What `probe_attention` finds. Not a plain dictionary: hooks on the way copy those to other devices."""

    shapes: dict[int, LayerShape] = field(default_factory=dict)
    """By layer number."""


def probe_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    probe: Probe,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Notes the layer's shape and answers zeros. Raises `UnsupportedModelError`."""
    if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
        raise UnsupportedModelError("attention whose values are not as wide as its keys is not supported")
    shape = LayerShape(num_kv_heads=key.shape[1], head_dim=key.shape[3], dtype=key.dtype, device=key.device)
    if probe.shapes.setdefault(module.layer_idx, shape) != shape:
        raise UnsupportedModelError(f"two attentions of different shape share the layer number {module.layer_idx}")
    return torch.zeros_like(query).transpose(1, 2), None


AttentionInterface.register(NAME, paged_attention)
AttentionInterface.register(PROBE_NAME, probe_attention)


def _decode(query: torch.Tensor, cache: LayerCache, group: DecodeGroup, scaling: float) -> torch.Tensor:
    """One query per sequence, `[B, H, D]`; the heads that share a key head are that head's queries.

    Plain batched products: for a handful of queries they read the keys faster than the fused kernel does on a CPU.
    """
    num_rows, _, num_keys = group.bias.shape
    keys, values = (_gather(blocks, group.head_blocks, num_keys) for blocks in (cache.keys, cache.values))
    queries = query.reshape(num_rows, -1, query.shape[-1])
    scores = torch.baddbmm(group.bias, queries, keys.transpose(1, 2), alpha=scaling)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.bmm(weights, values).view(query.shape)


def _gather(blocks: torch.Tensor, head_blocks: torch.Tensor, num_keys: int) -> torch.Tensor:
    """`[num_rows, num_keys, D]`, a row per sequence and head; whole blocks are copied, as memory likes it."""
    gathered = blocks.flatten(0, 1).index_select(0, head_blocks)
    return gathered.view(-1, num_keys, blocks.shape[-1])


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: LayerCache,
    span: PrefillSpan,
    scaling: float,
) -> torch.Tensor:
    """Consecutive queries of one sequence, `[num_rows, H, D]`."""
    if span.head_blocks is None or span.mask is None:
        return _causal(query, key, value, scaling)
    block_size = cache.keys.shape[2]
    num_slots = len(span.head_blocks) // cache.keys.shape[1] * block_size
    key, value = (
        _gather(blocks, span.head_blocks, num_slots)[:, : span.mask.shape[1]].transpose(0, 1)
        for blocks in (cache.keys, cache.values)
    )
    return _causal(query, key, value, scaling, span.mask)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Queries `[num_rows, H, D]` over keys and values `[num_keys, H_kv, D]`; without a mask, over those up to each."""
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return output[0].transpose(0, 1)


def _refuse(step: PagedStep | PackedStep, sliding_window: int | None, arguments: dict[str, Any]) -> None:
    if sliding_window is not None and sliding_window < step.max_model_len:
        raise UnsupportedModelError(
            f"sliding-window attention ({sliding_window} tokens) is not supported; "
            f"set generation.max_model_len to {sliding_window} or less to run the model without it"
        )
    for name in REFUSED_ARGUMENTS:
        if arguments.get(name) is not None:
            raise UnsupportedModelError(f"attention with {name} is not supported")


def pack(chunks: Sequence[Chunk]) -> tuple[list[int], list[list[int]]]:
    """The order in which chunks are packed, as indices into `chunks`, and the groups of decodes at its front.

    Decodes are sorted by length; a group ends where the next sequence would be more than twice as long as its first, so
    padding at most doubles the work.
    """
    decodes = sorted((i for i, chunk in enumerate(chunks) if len(chunk.token_ids) == 1), key=lambda i: chunks[i].end)
    prefills = [i for i, chunk in enumerate(chunks) if len(chunk.token_ids) > 1]
    groups: list[list[int]] = []
    for index in decodes:
        if groups and len(chunks[index].block_ids) <= 2 * len(chunks[groups[-1][0]].block_ids):
            groups[-1].append(index)
        else:
            groups.append([index])
    return decodes + prefills, groups


def row_slices(chunks: Sequence[Chunk]) -> list[slice]:
    """The rows of each chunk when they are packed one after the other."""
    ends = accumulate((len(chunk.token_ids) for chunk in chunks), initial=0)
    return [slice(begin, end) for begin, end in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Turns the blocks of chunks into indices of the flattened cache."""

    num_kv_heads: int
    block_size: int
    dtype: torch.dtype
    device: torch.device

    def indices(self, chunks: Sequence[Chunk], rows: Sequence[slice], group_sizes: Sequence[int]) -> StepIndices:
        """Of packed chunks at these rows, whose first ones are decodes in groups of these sizes."""
        decodes, first = [], 0
        for size in group_sizes:
            decodes.append(self.decode_group(chunks[first : first + size], first))
            first += size
        return StepIndices(
            slots=self.slots(chunks),
            fresh_blocks=self.fresh_blocks(chunks),
            decodes=decodes,
            prefills=[
                self.prefill_span(chunk, chunk_rows)
                for chunk, chunk_rows in zip(chunks[first:], rows[first:], strict=True)
            ],
        )

    def decode_group(self, chunks: Sequence[Chunk], first_row: int) -> DecodeGroup:
        """The group of these decodes, whose packed rows begin at `first_row`."""
        num_blocks = -(-max(chunk.end for chunk in chunks) // self.block_size)
        padded = [
            [*chunk.block_ids[:num_blocks], *[chunk.block_ids[0]] * (num_blocks - len(chunk.block_ids))]
            for chunk in chunks
        ]
        ends = torch.tensor([chunk.end for chunk in chunks], device=self.device).repeat_interleave(self.num_kv_heads)
        exists = torch.arange(num_blocks * self.block_size, device=self.device)[None] < ends[:, None]
        bias = torch.zeros(exists.shape, dtype=self.dtype, device=self.device).masked_fill_(~exists, -torch.inf)
        return DecodeGroup(
            rows=slice(first_row, first_row + len(chunks)),
            head_blocks=self._head_by_head(torch.tensor(padded, device=self.device)),
            bias=bias[:, None],
        )

    def prefill_span(self, chunk: Chunk, rows: slice) -> PrefillSpan:
        """The span of one prefill chunk at these packed rows."""
        if chunk.start == 0:
            return PrefillSpan(rows=rows, head_blocks=None, mask=None)
        num_blocks = -(-chunk.end // self.block_size)
        block_ids = torch.tensor([chunk.block_ids[:num_blocks]], device=self.device)
        mask = torch.ones(len(chunk.token_ids), chunk.end, dtype=torch.bool, device=self.device).tril(chunk.start)
        return PrefillSpan(rows=rows, head_blocks=self._head_by_head(block_ids), mask=mask)

    def slots(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Where the keys and values of all chunks go; see `StepIndices.slots`."""
        first_heads = [
            chunk.block_ids[position // self.block_size] * self.num_kv_heads * self.block_size
            + position % self.block_size
            for chunk in chunks
            for position in range(chunk.start, chunk.end)
        ]
        heads = torch.arange(self.num_kv_heads, device=self.device) * self.block_size
        return (torch.tensor(first_heads, device=self.device)[:, None] + heads).flatten()

    def fresh_blocks(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """The last block of each chunk that begins in this step; see `StepIndices.fresh_blocks`."""
        lasts = ((chunk, (chunk.end - 1) // self.block_size) for chunk in chunks)
        fresh = [chunk.block_ids[last] for chunk, last in lasts if last * self.block_size >= chunk.start]
        return torch.tensor(fresh, device=self.device, dtype=torch.long)

    def _head_by_head(self, block_ids: torch.Tensor) -> torch.Tensor:
        """`[B, num_blocks]` to `[B * H_kv * num_blocks]` in the cache flattened over heads."""
        heads = torch.arange(self.num_kv_heads, device=self.device)
        return (block_ids[:, None] * self.num_kv_heads + heads[None, :, None]).flatten()
