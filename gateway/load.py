"""What this gateway had to do for one model lately, as the pool's autoscaling wants to hear it. Pure.

Whoever reports looks at the load every `sampling_interval_s` and sends a report every `metrics_interval_s`, as handles
of Ray Serve do. A report ends with the present moment, so that the first request for a model without replicas is in it
when it is sent at once. Knows neither the dispatcher nor how a report travels; every moment is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from model_registry.contract import LoadReport, LoadSeries
from model_registry.schema import AutoscalingConfig

_SAMPLES_PER_LOOK_BACK: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load of one moment; mappings are by replica id, and hold every replica that is used."""

    queued: int = 0
    """Requests that wait here."""
    running: Mapping[str, int] = field(default_factory=dict)
    """Requests sent to a replica that have not ended."""
    queued_tokens: int = 0
    """Tokens that those which wait may come to."""
    running_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens that those which run have come to."""
    kv_cache_usage: Mapping[str, float] = field(default_factory=dict)
    """What a replica said last of its KV cache; none of those that cannot be heard."""


def sampling_interval_s(config: AutoscalingConfig) -> float:
    """Seconds between two looks at the load."""
    return min(config.look_back_period_s / _SAMPLES_PER_LOOK_BACK, config.metrics_interval_s)


class LoadHistory:
    """The samples of one model, as far as they are of the look-back period."""

    def __init__(self, gateway_id: str, model_id: str) -> None:
        self._gateway_id = gateway_id
        self._model_id = model_id
        self._samples: deque[tuple[float, Load]] = deque()

    def record(self, now: float, load: Load, look_back_period_s: float) -> None:
        """Remember the load of this moment, by `time.time`; forget what is older than the look-back period."""
        while self._samples and self._samples[0][0] <= now - look_back_period_s:
            self._samples.popleft()
        self._samples.append((now, load))

    def report(self, now: float, load: Load, look_back_period_s: float) -> LoadReport:
        """The look-back period up to this moment, which is remembered too, for the replicas that are used now."""
        self.record(now, load, look_back_period_s)
        return LoadReport(
            gateway_id=self._gateway_id,
            model_id=self._model_id,
            at=now,
            queued=tuple((at, one.queued) for at, one in self._samples),
            running=self._by_replica(lambda one: one.running),
            queued_tokens=tuple((at, one.queued_tokens) for at, one in self._samples),
            running_tokens=self._by_replica(lambda one: one.running_tokens),
            kv_cache_usage=self._by_replica(lambda one: one.kv_cache_usage),
        )

    def _by_replica(self, values: Callable[[Load], Mapping[str, float]]) -> dict[str, LoadSeries]:
        samples = [(at, values(load)) for at, load in self._samples]
        return {
            replica_id: tuple((at, by_replica[replica_id]) for at, by_replica in samples if replica_id in by_replica)
            for replica_id in samples[-1][1]
        }
