"""Traces that nobody has recorded: load that swings with the day, bursts on top of it, lengths that differ widely.

Arrivals are a Poisson process whose rate is lowest at the beginning and highest after half a day; bursts come at random
and multiply the rate while they last; lengths are lognormal, as those of real chats about are. Same seed, same trace.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aviary.simulation.trace import Trace

DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a synthetic trace looks like."""

    requests_per_s: float
    """The mean without bursts."""
    duration_s: float
    swing: float = 0.0
    """How far the rate goes from its mean, both ways, as a share of it: 0 is even, 1 goes down to nothing."""
    bursts_per_hour: float = 0.0
    burst_factor: float = 5.0
    """The rate in a burst, as a multiple above 1 of what it is without."""
    burst_s: float = 60.0
    prompt_tokens: float = 500.0
    """The mean."""
    output_tokens: float = 200.0
    """The mean."""
    spread: float = 1.0
    """Standard deviation of the logarithm of lengths; 0 makes all alike."""


def synthetic_trace(workload: Workload, seed: str) -> Trace:
    """One random trace of this kind."""
    rng = random.Random(seed)  # noqa: S311  (a simulation, not a secret)
    arrivals = [*_arrivals(rng, workload, 0.0, workload.duration_s, 1.0), *_burst_arrivals(rng, workload)]
    return Trace.of(
        (
            (
                arrival,
                _length(rng, workload.prompt_tokens, workload.spread),
                _length(rng, workload.output_tokens, workload.spread),
            )
            for arrival in sorted(arrivals)
        ),
        workload.duration_s,
    )


def _burst_arrivals(rng: random.Random, workload: Workload) -> Iterator[float]:
    """What bursts add to the even load."""
    if not workload.bursts_per_hour:
        return
    start = rng.expovariate(workload.bursts_per_hour / 3600)
    while start < workload.duration_s:
        end = min(start + workload.burst_s, workload.duration_s)
        yield from _arrivals(rng, workload, start, end, workload.burst_factor - 1)
        start = end + rng.expovariate(workload.bursts_per_hour / 3600)


def _arrivals(rng: random.Random, workload: Workload, start: float, end: float, factor: float) -> Iterator[float]:
    """Poisson arrivals by thinning: drawn at the highest rate, kept with the share that their moment has of it."""
    highest = workload.requests_per_s * (1 + workload.swing) * factor
    period_s = min(DAY_S, workload.duration_s)
    now = start + rng.expovariate(highest)
    while now < end:
        rate = 1 - workload.swing * math.cos(2 * math.pi * now / period_s)
        if rng.random() * (1 + workload.swing) < rate:
            yield now
        now += rng.expovariate(highest)


def _length(rng: random.Random, mean: float, spread: float) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)))
