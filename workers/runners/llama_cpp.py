"""Runs a GGUF model with llama.cpp's low-level batch interface: chunks of many sequences in one `llama_decode`.

llama.cpp owns the KV cells and knows sequences by number; a `SlotKVCache` keeps the books, and the operations of a plan
bring llama.cpp's memory to what the books say. Knows chunks and logits; no requests, no text, no sampling.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workers.engine.runner import Chunk, CopyPrefix, KVOperation, StepPlan
from workers.runners.llama_library import llama_cpp
from workers.runners.llama_model import LlamaModel

REASONS = {
    1: "no KV cells are left",
    2: "it was aborted",
    -1: "it refused the batch",
    -2: "it could not allocate memory",
    -3: "its computation failed",
}
"""What `llama_decode` returns when it does not succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSizes:
    """What a `llama_context` is made for."""

    num_slots: int
    num_cells: int
    max_batch_tokens: int


NewContext = Callable[[ContextSizes], int]
"""Makes a `llama_context *`, which is the caller's to free."""


class LlamaCppRunner:
    """A llama.cpp context together with its KV cells."""

    def __init__(self, model: LlamaModel) -> None:
        """Without a context, which `resize` gives it."""
        self._model = model
        self._vocab_size = model.vocab_size
        self._window = model.window
        self.sizes: ContextSizes | None = None
        self._finalizer: weakref.finalize[..., LlamaCppRunner] | None = None

    def resize(self, sizes: ContextSizes, new_context: NewContext) -> None:
        """Have a context of these sizes; one of others is given back first, and the new one has nothing in it."""
        if sizes == self.sizes:
            return
        if self._finalizer is not None:
            self._finalizer()
        self.sizes = None
        self._context: Any = new_context(sizes)
        # The finalizer's reference keeps the model alive until its context is gone.
        self._finalizer = weakref.finalize(self, free_context, self._context, self._model)
        self._finalizer.atexit = False
        self._memory: Any = llama_cpp.llama_get_memory(self._context)
        self._batch = Batch(sizes.max_batch_tokens)
        self.sizes = sizes

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> torch.Tensor:
        """Logits `[num_rows, vocab_size]` in float32, as the plan wants them.

        They are llama.cpp's own memory, not a copy: valid, and the caller's to change, until the next run.
        """
        for operation in plan.kv_operations:
            self._carry_out(operation)
        for chunk in plan.chunks:
            self._forget_later_tokens(chunk)
        status = llama_cpp.llama_decode(self._context, self._batch.fill(plan.chunks))
        if status != 0:
            raise RuntimeError(f"llama.cpp cannot run the step: {REASONS.get(status, f'status {status}')}")
        return self._logits(sum(chunk.num_logits for chunk in plan.chunks))

    def _carry_out(self, operation: KVOperation) -> None:
        if isinstance(operation, CopyPrefix):
            llama_cpp.llama_memory_seq_cp(self._memory, operation.source, operation.target, 0, operation.num_tokens)
        else:
            llama_cpp.llama_memory_seq_rm(self._memory, operation.slot, operation.num_tokens, -1)

    def _forget_later_tokens(self, chunk: Chunk) -> None:
        """llama.cpp only appends: what a failed run of this chunk left behind goes first."""
        (slot,) = chunk.block_ids
        if llama_cpp.llama_memory_seq_pos_max(self._memory, slot) < chunk.start:
            return
        llama_cpp.llama_memory_seq_rm(self._memory, slot, chunk.start, -1)
        first_seen = max(0, chunk.start - self._window) if self._window else 0
        if chunk.start and llama_cpp.llama_memory_seq_pos_min(self._memory, slot) > first_seen:
            raise RuntimeError("llama.cpp no longer has the tokens that the sliding window looks at")

    def _logits(self, num_rows: int) -> torch.Tensor:
        if not num_rows:
            return torch.empty(0, self._vocab_size)
        rows = llama_cpp.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(rows, shape=(num_rows, self._vocab_size)))


class Batch:
    """A `llama_batch` over arrays of our own, filled anew for each step."""

    def __init__(self, max_tokens: int) -> None:
        self._token_ids = np.zeros(max_tokens, dtype=np.int32)
        self._positions = np.zeros(max_tokens, dtype=np.int32)
        self._slots = np.zeros(max_tokens, dtype=np.int32)
        self._num_slots = np.ones(max_tokens, dtype=np.int32)
        self._wants_logits = np.zeros(max_tokens, dtype=np.int8)
        # llama.cpp takes a list of sequences per token: here each list is one element of `_slots`.
        self._slot_addresses = self._slots.ctypes.data + np.arange(max_tokens, dtype=np.uintp) * self._slots.itemsize
        self._struct = llama_cpp.llama_batch(
            token=_pointer(self._token_ids, ctypes.c_int32),
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._num_slots, ctypes.c_int32),
            seq_id=_pointer(self._slot_addresses, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wants_logits, ctypes.c_int8),
        )

    def fill(self, chunks: Sequence[Chunk]) -> Any:
        """The chunks one after the other."""
        end = 0
        for chunk in chunks:
            rows = slice(end, end := end + len(chunk.token_ids))
            self._token_ids[rows] = chunk.token_ids
            self._positions[rows] = range(chunk.start, chunk.end)
            self._slots[rows] = chunk.block_ids[0]
            self._wants_logits[rows] = 0
            self._wants_logits[end - chunk.num_logits : end] = 1
        self._struct.n_tokens = end
        return self._struct


def _pointer(array: Any, item_type: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(item_type))


def free_context(context: int, _model: LlamaModel) -> None:
    """`_model` was kept until now."""
    llama_cpp.llama_free(context)
