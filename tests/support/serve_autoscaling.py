"""Ray Serve's own autoscaling behind the interfaces of ours, without a running Ray: the oracle of our tests.

Serve asks `time` for every moment; here it gets a clock that the test sets. Its import warns about its own use of
pydantic, and its logger would tell of every silent gateway.
"""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.load import Load
from model_registry.contract import LoadReport, LoadSeries
from model_registry.schema import AutoscalingConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ray.serve._private import autoscaling_state, router
    from ray.serve._private.common import (
        RUNNING_REQUESTS_KEY,
        DeploymentHandleSource,
        DeploymentID,
        HandleMetricReport,
        ReplicaID,
        TimeStampedValue,
    )
    from ray.serve._private.config import DeploymentConfig, ReplicaConfig
    from ray.serve._private.deployment_info import DeploymentInfo
    from ray.serve.autoscaling_policy import __name__ as policy_name
    from ray.serve.config import AutoscalingConfig as ServeConfig

logging.getLogger("ray.serve").setLevel(logging.WARNING)

NOT_SERVES = {"target_ongoing_tokens", "target_kv_cache_usage"}
"""Settings that Serve does not have."""
DEPLOYMENT = DeploymentID("model", "app")
CLOCK_READERS = (autoscaling_state.__name__, policy_name, router.__name__)
"""Serve's modules that ask for the time."""


@dataclass
class Clock:
    """Takes the place of the module `time` in Serve's modules."""

    now: float = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in CLOCK_READERS:
            monkeypatch.setattr(f"{module}.time", self)


class ServeAutoscaler:
    """`DeploymentAutoscalingState`, called like `workers.pool.autoscaling.Autoscaler`."""

    def __init__(self, config: AutoscalingConfig, clock: Clock) -> None:
        self._clock = clock
        self._state = autoscaling_state.DeploymentAutoscalingState(DEPLOYMENT)
        self._alive: set[str] = set()
        self.first_target: int = self._state.register(_deployment_info(config), config.min_replicas)

    @property
    def ongoing_requests(self) -> float:
        return float(self._state.get_last_decision_total_num_requests())

    def record(self, report: LoadReport) -> None:
        self._alive.add(report.gateway_id)
        self._state.record_request_metrics_for_handle(
            HandleMetricReport(
                deployment_id=DEPLOYMENT,
                handle_id=report.gateway_id,
                actor_id=report.gateway_id,
                handle_source=DeploymentHandleSource.PROXY,
                queued_requests=_points(report.queued),
                metrics={RUNNING_REQUESTS_KEY: {_full_id(id_): _points(one) for id_, one in report.running.items()}},
                timestamp=report.at,
            )
        )

    def forget(self, gateway_id: str) -> None:
        self._alive.discard(gateway_id)

    def reconfigure(self, config: AutoscalingConfig, target: int) -> None:
        self._state.register(_deployment_info(config), target)

    def decide(self, now: float, *, target: int, replica_ids: Collection[str]) -> int:
        self._clock.now = now
        self._state.drop_stale_handle_metrics(self._alive)
        self._state.update_running_replica_ids([ReplicaID(id_, DEPLOYMENT) for id_ in replica_ids])
        return int(self._state.get_decision_num_replicas(target))


class ServeHandle:
    """`RouterMetricsManager`, called like `gateway.load.LoadHistory`."""

    def __init__(self, config: AutoscalingConfig, clock: Clock) -> None:
        self._clock = clock
        self._metrics = router.RouterMetricsManager(
            DEPLOYMENT, "handle", "actor", DeploymentHandleSource.PROXY, None, _Gauge(), _Gauge(), _Gauge(), _Loop()
        )
        self._metrics._deployment_config = DeploymentConfig.from_default(autoscaling_config=_serve_config(config))

    def record(self, now: float, load: Load) -> None:
        self._clock.now = now
        self._metrics.num_queued_requests = load.queued
        running = {ReplicaID(id_, DEPLOYMENT): number for id_, number in load.running.items()}
        self._metrics.num_requests_sent_to_replicas = defaultdict(int, running)
        self._metrics._add_autoscaling_metrics_point()

    def report(self, now: float, load: Load) -> tuple[LoadSeries, Mapping[str, LoadSeries]]:
        """What waits, and what runs on each replica."""
        self.record(now, load)
        report = self._metrics._get_metrics_report()
        return _series(report.queued_requests), {
            ReplicaID.from_full_id_str(id_).unique_id: _series(points)
            for id_, points in report.metrics[RUNNING_REQUESTS_KEY].items()
        }


@dataclass
class _Gauge:
    """A series of Prometheus that nobody reads."""

    tags: dict[str, str] = field(default_factory=dict)

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def set(self, value: float) -> None: ...


class _Loop:
    """The event loop for the exporter of those series, which is not run."""

    def call_soon_threadsafe(self, callback: Any) -> None: ...


def _deployment_info(config: AutoscalingConfig) -> DeploymentInfo:
    return DeploymentInfo(
        deployment_config=DeploymentConfig.from_default(autoscaling_config=_serve_config(config)),
        replica_config=ReplicaConfig.create(dict),
        start_time_ms=0,
        deployer_job_id="",
    )


def _serve_config(config: AutoscalingConfig) -> ServeConfig:
    with warnings.catch_warnings():
        # metrics_interval_s is on its way out, and a short look-back period is warned about.
        warnings.simplefilter("ignore")
        return ServeConfig(**config.model_dump(exclude=NOT_SERVES))


def _full_id(replica_id: str) -> str:
    return str(ReplicaID(replica_id, DEPLOYMENT).to_full_id_str())


def _points(series: LoadSeries) -> list[TimeStampedValue]:
    return [TimeStampedValue(at, value) for at, value in series]


def _series(points: list[TimeStampedValue]) -> LoadSeries:
    return tuple((point.timestamp, point.value) for point in points)
