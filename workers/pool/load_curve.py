"""The sum of several measured values as one curve over time, and its mean up to any later moment. Pure.

Sum and mean are those of Ray Serve 2.60 (`merge_instantaneous_total`, `time_weighted_average`), rounding and order of
additions included, so that a decision made from them is Serve's to the last digit. The autoscaler makes a curve when it
gets news and asks it at every tick: the past is added up once, a mean costs one multiplication.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Final

from model_registry.contract import LoadSeries

LEAST_SPAN_S: Final = 1e-3
"""How long the last value counts when it is of this moment, or of a clock that runs ahead."""
_PER_S: Final = 100
"""Moments less than a hundredth of a second apart are one."""


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """A step function: what lies before its last point, added up, and that point, whose value holds from there on."""

    area: float = 0.0
    span_s: float = 0.0
    at: float = 0.0
    value: float = 0.0

    @classmethod
    def total_of(cls, series: Iterable[LoadSeries]) -> LoadCurve:
        """The sum, from the moment on at which all of them have a value: before it, the sum would be too low."""
        active = [one for one in series if one]
        if len(active) == 1:
            return cls._from(active[0], active[0][0][0])
        points = _sum(active)
        if not points:
            return cls()
        complete_at = max(one[0][0] for one in active)
        start = points[0][0]
        return cls._from(points, max(complete_at, start) if complete_at <= points[-1][0] else start)

    @classmethod
    def _from(cls, points: Iterable[tuple[float, float]], start: float) -> LoadCurve:
        area = span_s = value = 0.0
        at = start
        for time, next_value in points:
            if time > at:
                area += value * (time - at)
                span_s += time - at
                at = time
            value = next_value
        return cls(area, span_s, at, value)

    def mean(self, now: float) -> float:
        """Weighted by time, from the curve's start until now."""
        end = self.at + (now - self.at if now > self.at else LEAST_SPAN_S)
        last_s = end - self.at
        return (self.area + self.value * last_s) / (self.span_s + last_s)


def _sum(series: Collection[LoadSeries]) -> list[tuple[float, float]]:
    """The points at which some value changes, with the sum of all from there on. Each is 0 before its first point."""
    changes = [
        (at, value - before)
        for one in series
        for (_, before), (at, value) in pairwise(((0.0, 0.0), *one))
        if value != before
    ]
    changes.sort(key=itemgetter(0))
    points: list[tuple[float, float]] = []
    total = 0.0
    for at, change in changes:
        total += change
        rounded = math.floor(at * _PER_S + 0.5) / _PER_S
        if points and points[-1][0] == rounded:
            points.pop()
        points.append((rounded, total))
    return points
