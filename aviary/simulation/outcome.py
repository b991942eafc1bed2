"""What a simulation comes to: how every request ended, how long it took, and what the replicas cost. Plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aviary.simulation.replica import Ending


@dataclass(frozen=True, slots=True)
class Moment:
    """What was to be seen at one moment."""

    at: float
    num_arrived: int
    """Requests since the beginning."""
    num_queued: int
    """Requests that wait in the gateway."""
    num_ready: int
    """Replicas that take requests."""
    num_paid: int
    """Replicas that exist: on their way, ready, or finishing their last requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One model under one set of settings."""

    model_id: str
    endings: Mapping[Ending, int]
    first_token_s: Sequence[float]
    """From arrival to first token, of the requests that were done, ascending."""
    latency_s: Sequence[float]
    """From arrival to last token, likewise."""
    duration_s: float
    """Until the last request has ended, at least as long as the trace."""
    replica_s: float
    """Seconds of all replicas together, from their start, loading included, to their end."""
    peak_replicas: int
    decisions: Sequence[tuple[float, int]]
    """When the target changed, and to what; the first is the beginning."""
    moments: Sequence[Moment]

    @property
    def num_requests(self) -> int:
        return sum(self.endings.values())


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of all values does not exceed; None of nothing."""
    if not ascending:
        return None
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
