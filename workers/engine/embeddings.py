"""Embeddings: one vector of a prompt, several prompts at a time, between two steps of the generations.

The queue takes requests in order; each time it runs it makes one batch for which at most so many tokens are computed,
padding included, so that generations wait no longer than for one step of their own. One prompt that is longer is a
batch by itself. A batch that fails is run prompt by prompt, and only the one that fails alone ends. The model is behind
an `Embedder`; no torch here.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from model_registry.contract import (
    Fault,
    FaultKind,
    FinishReason,
    GenerationRequest,
    RequestFaultError,
    SequenceOutput,
    Usage,
)
from workers.errors import DeviceLostError

logger = logging.getLogger(__name__)

NO_FAULT_DETAILS: Final = "the model failed on this request"


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens of which a vector is wanted."""

    token_ids: Sequence[int]
    num_dimensions: int
    """Leading numbers of the vector that are wanted."""


class Embedder(Protocol):
    """Makes vectors; always called on the engine's thread."""

    @property
    def num_dimensions(self) -> int:
        """Numbers of a whole vector."""

    @property
    def can_be_cut(self) -> bool:
        """Whether the leading numbers of a vector are a vector too."""

    def num_computed(self, lengths: Sequence[int]) -> int:
        """Tokens that `embed` computes for passages of such lengths, padding included; never fewer for more of them."""

    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        """The vector of each, in float32, little-endian."""


@dataclass(frozen=True, slots=True)
class PreparedEmbedding:
    """A request for an embedding, tokenized and checked."""

    request: GenerationRequest
    passage: Passage

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        return len(self.passage.token_ids)


class EmbeddingQueue:
    """Owner of all requests for embeddings from `add` until their output."""

    def __init__(self, embedder: Embedder | None) -> None:
        self._embedder = embedder
        self._waiting: OrderedDict[str, PreparedEmbedding] = OrderedDict()
        self.num_tokens_done = 0
        """Of all prompts since the start."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def wanted_dimensions(self, asked: int | None) -> int:
        """Numbers of the vector that a request gets. Raises `RequestFaultError` when it cannot have so many."""
        if self._embedder is None:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                "This model makes no embeddings the way it is loaded, as none does with DeepSpeed. Use another model.",
                "model",
            )
        whole = self._embedder.num_dimensions
        if asked is None or asked == whole:
            return whole
        if asked > whole:
            reason = f"{asked} is more than the {whole} that this model's vectors have. Ask for fewer."
        elif not self._embedder.can_be_cut:
            reason = (
                f"this model's vectors have {whole} dimensions and cannot be cut to {asked}. Leave it out; or, if the "
                "model was trained for that, set embedding.dimensions in its registry entry."
            )
        else:
            return asked
        raise RequestFaultError(FaultKind.INVALID_REQUEST, f"Invalid 'dimensions': {reason}", "dimensions")

    def add(self, prepared: PreparedEmbedding) -> None:
        self._waiting[prepared.request_id] = prepared

    def remove(self, request_id: str) -> None:
        """Forget a request; unknown ids are fine."""
        self._waiting.pop(request_id, None)

    def run_batch(self, max_tokens: int) -> list[SequenceOutput]:
        """The outputs of the next batch; empty only when nothing waits."""
        if not self._waiting:
            return []
        assert self._embedder is not None  # noqa: S101  nothing is prepared without
        return self._run(self._take(max_tokens, self._embedder), self._embedder)

    def _take(self, max_tokens: int, embedder: Embedder) -> list[PreparedEmbedding]:
        candidates = list(islice(self._waiting.values(), max_tokens))  # none has less than one token
        lengths = [prepared.num_tokens for prepared in candidates]
        sizes = range(1, len(candidates) + 1)
        num_fitting = bisect_right(sizes, max_tokens, key=lambda size: embedder.num_computed(lengths[:size]))
        batch = candidates[: max(1, num_fitting)]
        for prepared in batch:
            del self._waiting[prepared.request_id]
        return batch

    def _run(self, batch: list[PreparedEmbedding], embedder: Embedder) -> list[SequenceOutput]:
        """Raises `DeviceLostError`, which ends the engine."""
        try:
            vectors = embedder.embed([prepared.passage for prepared in batch])
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises must end one request at most
            if len(batch) == 1:
                return [_failed(batch[0], error)]
            logger.warning("a batch of %d embeddings failed, running them one by one: %s", len(batch), error)
            return [output for prepared in batch for output in self._run([prepared], embedder)]
        self.num_tokens_done += sum(prepared.num_tokens for prepared in batch)
        return [_finished(prepared, vector) for prepared, vector in zip(batch, vectors, strict=True)]


def _finished(prepared: PreparedEmbedding, vector: bytes) -> SequenceOutput:
    return SequenceOutput(
        request_id=prepared.request_id,
        embedding=vector,
        finish_reason=FinishReason.STOP,
        usage=Usage(prompt_tokens=prepared.num_tokens, completion_tokens=0),
    )


def _failed(prepared: PreparedEmbedding, error: Exception) -> SequenceOutput:
    logger.error("request %s failed in the model", prepared.request_id, exc_info=error)
    fault = Fault(kind=FaultKind.ENGINE_FAULT, message=NO_FAULT_DETAILS)
    return SequenceOutput(request_id=prepared.request_id, fault=fault)
