"""What this gateway had to do for one model lately, as the pool's autoscaling wants to hear it. Pure.

Whoever reports looks at the load every `sampling_interval_s` and sends a report every `metrics_interval_s`, as handles
of Ray Serve do. A report ends with the present moment, so that the first request for a model without replicas is in it
when it is sent at once. Knows neither the dispatcher nor how a report travels; every moment is an argument.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from model_registry.contract import LoadReport
from model_registry.schema import AutoscalingConfig

_SAMPLES_PER_LOOK_BACK: Final = 5


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one moment."""

    queued: int = 0
    """Requests that wait here."""
    running: Mapping[str, int] = field(default_factory=dict)
    """By replica id, for every replica that is used: requests sent to it that have not ended."""


def sampling_interval_s(config: AutoscalingConfig) -> float:
    """Seconds between two looks at the load."""
    return min(config.look_back_period_s / _SAMPLES_PER_LOOK_BACK, config.metrics_interval_s)


class LoadHistory:
    """The samples of one model, as far as they are of the look-back period."""

    def __init__(self, gateway_id: str, model_id: str) -> None:
        self._gateway_id = gateway_id
        self._model_id = model_id
        self._queued: list[tuple[float, float]] = []
        self._running: dict[str, list[tuple[float, float]]] = {}

    def record(self, now: float, load: Load, look_back_period_s: float) -> None:
        """Remember the load of this moment, by `time.time`; forget what is older than the look-back period."""
        oldest = now - look_back_period_s
        self._queued = [*_after(self._queued, oldest), (now, load.queued)]
        # A replica that is not used any more is left out, with its past.
        self._running = {
            replica_id: [*_after(self._running.get(replica_id, []), oldest), (now, num_running)]
            for replica_id, num_running in load.running.items()
        }

    def report(self, now: float, load: Load, look_back_period_s: float) -> LoadReport:
        """The look-back period up to this moment, which is remembered too."""
        self.record(now, load, look_back_period_s)
        return LoadReport(
            gateway_id=self._gateway_id,
            model_id=self._model_id,
            at=now,
            queued=tuple(self._queued),
            running={replica_id: tuple(points) for replica_id, points in self._running.items()},
        )


def _after(points: list[tuple[float, float]], oldest: float) -> list[tuple[float, float]]:
    return points[bisect_right(points, oldest, key=lambda point: point[0]) :]
