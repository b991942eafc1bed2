"""How many replicas one model should have: Ray Serve's autoscaling, from the registry's `autoscaling_config`.

Gateways report what waits in them and what runs where; their sum, averaged over the look-back period, is compared with
what the running replicas should have. A wish for more or fewer counts when it has lasted for its delay. Equal to Ray
Serve 2.60 (`DeploymentAutoscalingState` with the default policy), which is the oracle of its tests; Serve counts
requests, while here tokens or KV cache may take their place, under the same rules.

Pure: knows neither Ray nor a clock, every moment is an argument. The manager has one per model and asks it at every
tick; the simulator does the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from model_registry.contract import LoadReport
from model_registry.schema import AutoscalingConfig
from workers.pool.reported_load import ReportedLoad

LEAST_SILENCE_S: Final = 10.0
"""A gateway that is silent for less is never forgotten, however often it should report."""
_CLOCK_TOLERANCE_S: Final = 1e-6
"""Differences between moments are inexact: a delay of 30 s may come out as 29.999999."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """More or fewer replicas have been wanted since then, without a break."""

    is_for_more: bool
    since: float


class Autoscaler:
    """Remembers the load of one model, and for how long another number of replicas has been wanted."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config
        self._load = ReportedLoad()
        self._wish: _Wish | None = None
        self._ongoing = 0.0

    @property
    def ongoing_requests(self) -> float:
        """Requests queued and running, averaged over the look-back period, as of the last decision."""
        return self._ongoing

    def record(self, report: LoadReport) -> None:
        """Take what a gateway says, unless something later of it is known."""
        self._load.record(report)

    def forget(self, gateway_id: str) -> None:
        """A gateway has gone, and what it said with it."""
        self._load.forget(gateway_id)

    def reconfigure(self, config: AutoscalingConfig) -> None:
        """Go by other settings from now on. Known load stays; how long another number has been wanted does not."""
        self._config = config
        self._wish = None

    def decide(self, now: float, *, num_running: int, target: int, replica_ids: Collection[str]) -> int:
        """The new target. `target` is the present one; `replica_ids` are the replicas whose load counts."""
        self._load.forget_silent(now, max(2 * self._config.metrics_interval_s, LEAST_SILENCE_S))
        self._load.count_only(frozenset(replica_ids))
        self._ongoing = self._load.ongoing_requests(now)
        wanted = self._wanted(now, num_running, target)
        return max(self._config.min_replicas, min(self._config.max_replicas, wanted))

    def _wanted(self, now: float, num_running: int, target: int) -> int:
        """The target before bounds."""
        if num_running == 0 and self._ongoing > 0:
            # Somebody waits and nothing runs: a delay would only be felt.
            return max(math.ceil(self._upscaling_factor), target)
        if num_running == 0 and target > 0:
            # They are on their way, and without them nothing can be said about the load of one.
            return target
        wished = self._scaled(self._desired(now, num_running), num_running) if num_running else target
        return self._once_lasting(max(0, wished), now, target)

    def _desired(self, now: float, num_running: int) -> float:
        """Replicas that would each have what they should have; where two things are measured, the greater number."""
        return max(num_running * (load / (target * num_running)) for load, target in self._measured(now))

    def _measured(self, now: float) -> list[tuple[float, float]]:
        """What there is, beside what one replica should have of it."""
        config = self._config
        measured = []
        if config.target_ongoing_tokens is not None:
            measured.append((self._load.ongoing_tokens(now), config.target_ongoing_tokens))
        if config.target_kv_cache_usage is not None:
            measured.append((self._load.kv_caches(now), config.target_kv_cache_usage))
        if not measured:
            return [(self._ongoing, config.target_ongoing_requests)]
        if self._ongoing > 0:
            # Where there is work one replica must stay, even if nobody has said yet what it takes.
            return [(max(load, target), target) for load, target in measured]
        return measured

    def _scaled(self, desired: float, num_running: int) -> int:
        """A part of the way there, or more than all of it, but at least one step down."""
        change = desired - num_running
        factor = self._upscaling_factor if change > 0 else self._downscaling_factor
        scaled = math.ceil(num_running + factor * change)
        if math.ceil(desired) < num_running == scaled:
            return scaled - 1
        return scaled

    def _once_lasting(self, wished: int, now: float, target: int) -> int:
        """What is wished, once more, or fewer, has been wished for as long as it must; until then the target."""
        if wished == target:
            self._wish = None
            return target
        is_for_more = wished > target
        if self._wish is None or self._wish.is_for_more is not is_for_more:
            self._wish = _Wish(is_for_more, now)
        if now - self._wish.since + _CLOCK_TOLERANCE_S < self._delay_s(is_for_more, target):
            return target
        self._wish = None
        # The last replica goes alone, after a delay of its own.
        return max(wished, 1) if target > 1 else wished

    def _delay_s(self, is_for_more: bool, target: int) -> float:
        config = self._config
        if is_for_more:
            return config.upscale_delay_s
        if target == 1 and config.downscale_to_zero_delay_s is not None:
            return config.downscale_to_zero_delay_s
        return config.downscale_delay_s

    @property
    def _upscaling_factor(self) -> float:
        return self._config.upscaling_factor or self._config.smoothing_factor

    @property
    def _downscaling_factor(self) -> float:
        return self._config.downscaling_factor or self._config.smoothing_factor
