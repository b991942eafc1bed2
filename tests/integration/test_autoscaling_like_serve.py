"""Our autoscaling decides what Ray Serve's would, at every tick of a thousand random days."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest

from gateway.load import Load, LoadHistory, sampling_interval_s
from model_registry.contract import LoadReport
from model_registry.schema import AutoscalingConfig, RegistryEntry
from tests.support.serve_autoscaling import Clock, ServeAutoscaler, ServeHandle
from workers.pool.autoscaling import Autoscaler

pytestmark = pytest.mark.parallel

NUM_TRACES: Final = 1000
NUM_TICKS: Final = 80
START: Final = 1_700_000_000.0
"""Of the size of `time.time()`: differences between such numbers are inexact."""


def random_config(rng: random.Random) -> AutoscalingConfig:
    fewest = rng.choice([0, 0, 1, 1, 2, 5])
    most = max(1, fewest) + rng.choice([0, 1, 5, 30])
    interval_s = rng.choice([0.5, 2.0, 5.0, 10.0, 12.0])
    return AutoscalingConfig(
        min_replicas=fewest,
        initial_replicas=rng.choice([None, rng.randint(fewest, most)]),
        max_replicas=most,
        target_ongoing_requests=rng.choice([0.5, 1.0, 2.0, 3.0, 7.3, 16.0]),
        metrics_interval_s=interval_s,
        look_back_period_s=rng.choice([0.8, 2, 3, 6]) * interval_s,
        smoothing_factor=rng.choice([0.5, 1.0, 1.7]),
        upscaling_factor=rng.choice([None, 0.3, 1.0, 2.5]),
        downscaling_factor=rng.choice([None, 0.1, 0.6, 1.0]),
        upscale_delay_s=rng.choice([0.0, 3.0, 10.0, 30.0]),
        downscale_delay_s=rng.choice([0.0, 5.0, 20.0, 60.0]),
        downscale_to_zero_delay_s=rng.choice([None, 0.0, 40.0]),
    )


@dataclass
class Gateway:
    """One that has a clock of its own, and falls silent now and then."""

    rng: random.Random
    gateway_id: str
    skew_s: float = 0.0
    silent_until: float = 0.0
    next_sample: float = 0.0
    next_report: float = 0.0
    history: LoadHistory = field(init=False)
    late: list[LoadReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.history = LoadHistory(self.gateway_id, "model")

    def reports(self, now: float, load: Load, config: AutoscalingConfig) -> Iterator[LoadReport]:
        """What arrives from it at this tick: sometimes late, so that an older report comes after a newer one."""
        if now >= self.next_sample:
            self.next_sample = now + sampling_interval_s(config)
            self.history.record(now + self.skew_s, load, config.look_back_period_s)
        if self.rng.random() < 0.01:
            self.silent_until = now + self.rng.choice([5, 30, 100])
        if now < max(self.next_report, self.silent_until):
            return
        self.next_report = now + config.metrics_interval_s
        report = self.history.report(now + self.skew_s, load, config.look_back_period_s)
        if self.rng.random() < 0.1:
            self.late.append(report)
            return
        yield report
        yield from self.late
        self.late.clear()


class Cluster:
    """Gateways and replicas of one trace; replicas follow the target when they can."""

    def __init__(self, rng: random.Random, num_replicas: int) -> None:
        self.rng = rng
        self.num_made = 0
        self.replica_ids: list[str] = []
        self.gateways = [self.new_gateway(f"gateway-{index}") for index in range(rng.randint(1, 4))]
        self.level = 0.0
        for _ in range(num_replicas):
            self.add_replica()

    def new_gateway(self, gateway_id: str) -> Gateway:
        return Gateway(self.rng, gateway_id, skew_s=self.rng.choice([0.0, 0.0, self.rng.uniform(-3, 3)]))

    def add_replica(self) -> None:
        self.num_made += 1
        self.replica_ids.append(f"replica-{self.num_made}")

    def move(self, target: int) -> None:
        """Load rises, falls, bursts, stops; a replica comes up, goes, or dies."""
        if self.rng.random() < 0.08:
            self.level = self.rng.choice([0.0, 0.0, 0.5, 2.0, 8.0, 40.0])
        if len(self.replica_ids) < target and self.rng.random() < 0.5:
            self.add_replica()
        if len(self.replica_ids) > target or (self.replica_ids and self.rng.random() < 0.01):
            self.replica_ids.pop(self.rng.randrange(len(self.replica_ids)))

    def load(self) -> Load:
        """One gateway's share. It may still use a replica that has gone."""
        seen = [one for one in (*self.replica_ids, f"replica-{self.num_made - 5}") if self.rng.random() < 0.9]
        most = round(self.level)
        queued = self.rng.randint(0, most) if self.level else 0
        return Load(queued=queued, running={one: self.rng.randint(0, min(most, 9)) for one in seen})


class Trace:
    """One random day: both autoscalers hear and decide the same."""

    def __init__(self, seed: int, clock: Clock) -> None:
        self.rng = random.Random(seed)
        self.clock = clock
        clock.now = START + self.rng.random() * 1000
        self.config = random_config(self.rng)
        self.ours = Autoscaler(self.config)
        self.serves = ServeAutoscaler(self.config, clock)
        self.target = self.serves.first_target
        self.cluster = Cluster(self.rng, self.rng.randint(0, self.target))

    def step(self) -> Iterator[str]:
        """One tick; names what happened."""
        self.clock.now += self.rng.choice([0.1, 1.0, 5.0, self.rng.uniform(0, 3)])
        self.cluster.move(self.target)
        for gateway in self.cluster.gateways:
            for report in gateway.reports(self.clock.now, self.cluster.load(), self.config):
                self.ours.record(report)
                self.serves.record(report)
        if self.rng.random() < 0.01:
            self.replace_a_gateway()
        if self.rng.random() < 0.01:
            self.config = random_config(self.rng)
            self.ours.reconfigure(self.config)
            self.serves.reconfigure(self.config, self.target)
        before, self.target = self.target, self.decide()
        if self.target > before:
            yield "more" if before else "from zero"
        elif self.target < before:
            yield "fewer" if self.target else "to zero"

    def replace_a_gateway(self) -> None:
        index = self.rng.randrange(len(self.cluster.gateways))
        gone = self.cluster.gateways[index].gateway_id
        self.cluster.gateways[index] = self.cluster.new_gateway(f"{gone}+")
        self.ours.forget(gone)
        self.serves.forget(gone)

    def decide(self) -> int:
        now, replica_ids = self.clock.now, self.cluster.replica_ids
        ours = self.ours.decide(now, num_running=len(replica_ids), target=self.target, replica_ids=replica_ids)
        serves = self.serves.decide(now, target=self.target, replica_ids=replica_ids)
        assert (ours, self.ours.ongoing_requests) == (serves, self.serves.ongoing_requests)
        return ours


def test_a_thousand_random_traces_are_decided_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.patch(monkeypatch)
    happened: Counter[str] = Counter()
    for seed in range(NUM_TRACES):
        trace = Trace(seed, clock)
        for _ in range(NUM_TICKS):
            happened.update(trace.step())
    assert min(happened[what] for what in ("more", "fewer", "to zero", "from zero")) > 200, happened


def test_both_start_with_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.patch(monkeypatch)
    for seed in range(100):
        config = random_config(random.Random(seed))
        entry = RegistryEntry.model_validate(
            {
                "model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}},
                "deployment_config": {"autoscaling_config": config},
            }
        )
        assert ServeAutoscaler(config, clock).first_target == entry.num_replicas


def test_a_gateway_reports_what_a_handle_of_serve_would(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.patch(monkeypatch)
    for seed in range(100):
        rng = random.Random(seed)
        config = random_config(rng)
        ours, serves = LoadHistory("gateway", "model"), ServeHandle(config, clock)
        cluster, now = Cluster(rng, 3), START
        for _ in range(100):
            now += rng.choice([0.1, 1.0, 5.0, rng.uniform(0, 3)])
            cluster.move(rng.randint(0, 5))
            load = Load(queued=rng.randint(0, 9), running={one: rng.randint(0, 9) for one in cluster.replica_ids})
            if rng.random() < 0.7:
                ours.record(now, load, config.look_back_period_s)
                serves.record(now, load)
                continue
            report = ours.report(now, load, config.look_back_period_s)
            assert (report.queued, report.running) == serves.report(now, load), f"seed {seed}"
