"""The seam between logits and tokens: one token per row, and how likely it was where the request wants to know."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from workers.engine.runner import LogitsRows
from workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """Log-softmax of a row in float32 as the model gave it, before anything that sampling does to it."""

    chosen: float
    top: Rows[tuple[int, float]] = ()
    """Ids and logprobs of the `num_logprobs` likeliest tokens, likeliest first, equally likely ones by id."""


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprobs: RawLogprobs | None = None
    """None unless the sequence's request has `num_logprobs`."""


class Sampler(Protocol):
    """Chooses the next token of each sequence."""

    def sample(self, rows: LogitsRows, sequences: list[Sequence]) -> list[SampledToken | Exception]:
        """One token per row; an exception where that row's sequence alone cannot go on."""
