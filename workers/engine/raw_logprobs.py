"""How likely one token was, by its id: what samplers say and sequences keep, before anybody knows it as text."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """Log-softmax of a row in float32 as the model gave it, before anything that sampling does to it."""

    chosen: float
    top: Rows[tuple[int, float]] = ()
    """Ids and logprobs of the `num_logprobs` likeliest tokens, likeliest first, equally likely ones by id."""
