"""Vectors by llama.cpp: hidden states of the same loaded model, from a context of their own.

The context is made when the first request for an embedding comes, and made anew when more tokens come together than it
has cells for; models that nobody asks for embeddings pay nothing. Called between two engine steps; knows no requests.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from workers.engine.embeddings import Passage
from workers.engine.runner import Chunk
from workers.runners.llama_cpp import REASONS, Batch, ContextSizes, NewContext, free_context
from workers.runners.llama_library import llama_cpp
from workers.runners.llama_model import LlamaModel
from workers.runners.pooling import VectorShape

NUM_SLOTS: Final = 32
"""Texts that are computed together at most."""
MIN_CELLS: Final = 512


class LlamaCppEmbedder:
    """Makes vectors with a loaded model."""

    def __init__(self, model: LlamaModel, shape: VectorShape, new_context: NewContext, max_batch_tokens: int) -> None:
        """`new_context` makes one for embeddings, of such sizes; `max_batch_tokens` are computed at a time."""
        self._model = model
        self._is_encoder = model.is_encoder
        self._shape = shape
        self._new_context = new_context
        self._max_batch_tokens = max_batch_tokens
        self._num_cells = 0
        self._context: Any = None
        self._finalizer: weakref.finalize[..., LlamaCppEmbedder] | None = None
        self.num_dimensions: int = model.embedding_size
        self.can_be_cut = shape.can_be_cut

    def num_computed(self, lengths: Sequence[int]) -> int:
        return sum(lengths)  # llama.cpp packs its batches

    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        groups = (passages[start : start + NUM_SLOTS] for start in range(0, len(passages), NUM_SLOTS))
        return [vector for group in groups for vector in self._embed(group)]

    def _embed(self, passages: Sequence[Passage]) -> Iterator[bytes]:
        self._make_room(sum(len(passage.token_ids) for passage in passages))
        states: list[list[torch.Tensor]] = [[] for _ in passages]
        for chunks in self._steps(passages):
            for chunk, rows in zip(chunks, self._run(chunks), strict=True):
                states[chunk.block_ids[0]].append(rows)
        for passage, rows_of_chunks in zip(passages, states, strict=True):
            yield self._shape.vector(torch.cat(rows_of_chunks), passage.num_dimensions)

    def _make_room(self, num_tokens: int) -> None:
        """An empty context of at least so many cells."""
        if num_tokens <= self._num_cells:
            if not self._is_encoder:
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
            return
        if self._finalizer is not None:
            self._finalizer()
        self._num_cells = 0
        num_cells = max(MIN_CELLS, 1 << (num_tokens - 1).bit_length())
        # What looks at all tokens of a text must have them all at once.
        max_batch_tokens = num_cells if self._is_encoder else self._max_batch_tokens
        sizes = ContextSizes(num_slots=NUM_SLOTS, num_cells=num_cells, max_batch_tokens=max_batch_tokens)
        self._context = self._new_context(sizes)
        # The finalizer's reference keeps the model alive until its context is gone.
        self._finalizer = weakref.finalize(self, free_context, self._context, self._model)
        self._finalizer.atexit = False
        self._batch = Batch(max_batch_tokens)
        self._num_cells = num_cells

    def _steps(self, passages: Sequence[Passage]) -> Iterator[list[Chunk]]:
        """The passages, each in a slot of its own, cut where a batch is full."""
        limit = self._num_cells if self._is_encoder else self._max_batch_tokens
        chunks: list[Chunk] = []
        num_left = limit
        for slot, passage in enumerate(passages):
            start, length = 0, len(passage.token_ids)
            while start < length:
                end = min(length, start + num_left)
                chunks.append(Chunk(passage.token_ids[start:end], start, (slot,), num_logits=end - start))
                num_left -= end - start
                start = end
                if not num_left:
                    yield chunks
                    chunks, num_left = [], limit
        if chunks:
            yield chunks

    def _run(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Hidden states of each chunk's tokens, `[num_tokens, size]`; llama.cpp computes all, whichever are wanted."""
        run = llama_cpp.llama_encode if self._is_encoder else llama_cpp.llama_decode
        status = run(self._context, self._batch.fill(chunks))
        if status != 0:
            raise RuntimeError(f"llama.cpp cannot run the batch: {REASONS.get(status, f'status {status}')}")
        lengths = [len(chunk.token_ids) for chunk in chunks]
        rows = llama_cpp.llama_get_embeddings(self._context)
        # Copied, since the next batch's take their place.
        states = np.ctypeslib.as_array(rows, shape=(sum(lengths), self.num_dimensions)).copy()
        return list(torch.from_numpy(states).split(lengths))
