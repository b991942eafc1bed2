"""The seam between logits and tokens: one token per row."""

from __future__ import annotations

from typing import Protocol

from workers.engine.runner import LogitsRows
from workers.engine.sequence import Sequence


class Sampler(Protocol):
    """Chooses the next token of each sequence."""

    def sample(self, rows: LogitsRows, sequences: list[Sequence]) -> list[int | Exception]:
        """One token id per row; an exception where that row's sequence alone cannot go on."""
