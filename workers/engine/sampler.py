"""The seam between logits and tokens: one token per row, and how likely it was where the request wants to know."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from workers.engine.raw_logprobs import RawLogprobs
from workers.engine.runner import LogitsRows
from workers.engine.sequence import Sequence

__all__ = ["RawLogprobs", "SampledToken", "Sampler"]


@dataclass(frozen=True, slots=True)
class SampledToken:
    token_id: int
    logprobs: RawLogprobs | None = None
    """None unless the sequence's request has `num_logprobs`."""


class Sampler(Protocol):
    """Chooses the next token of each sequence."""

    def sample(self, rows: LogitsRows, sequences: Rows[Sequence], at: Rows[int]) -> list[SampledToken | Exception]:
        """One token per sequence, whose rows are those `at` these indices, in order; it may change them.

        An exception where a sequence alone cannot go on.
        """

    def logprobs(self, rows: LogitsRows, token_ids: Rows[int], num_logprobs: int) -> list[RawLogprobs]:
        """How likely a token that is known was, for each row, and so many of the likeliest."""
