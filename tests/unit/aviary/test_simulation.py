"""A model in simulated time: nothing is lost, queues are as long as theory says, and replicas follow the autoscaler."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from aviary.simulation.outcome import Outcome, percentile
from aviary.simulation.replica import Ending, Speed
from aviary.simulation.simulation import Conditions, Simulation
from aviary.simulation.trace import Row, Trace
from aviary.simulation.workload import Workload, synthetic_trace
from gateway.load import Load, LoadHistory, sampling_interval_s
from model_registry.schema import RegistryEntry
from workers.pool.autoscaling import Autoscaler

SPEED = Speed(step_s=0.02, step_per_sequence_s=0.001, prefill_tokens_per_s=5000.0, cold_start_s=20.0)


def entry(autoscaling: Mapping[str, Any] | None = None, *, queued: int = 50, **generation: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "a/b",
                "initialization": {"initializer": {"type": "Echo"}},
                "generation": {"max_batch_size": 4, **generation},
            },
            "deployment_config": {"autoscaling_config": autoscaling or {}, "max_queued_requests": queued},
        }
    )


def simulated(
    of: RegistryEntry, trace: Trace | Sequence[Row], speed: Speed = SPEED, timeout_s: float = 600.0
) -> Outcome:
    trace = trace if isinstance(trace, Trace) else Trace.of(trace)
    simulation = Simulation(of, trace, Conditions(speed=speed, request_timeout_s=timeout_s))
    while not simulation.advance(1000):
        pass
    return simulation.outcome


def fixed(num_replicas: int) -> dict[str, int]:
    return {"min_replicas": num_replicas, "max_replicas": num_replicas}


# Theory


def erlang_c(num_servers: int, load: float) -> float:
    """The share of arrivals that wait: M/M/c, load = arrivals per service time."""
    all_busy = load**num_servers / math.factorial(num_servers) * num_servers / (num_servers - load)
    return all_busy / (sum(load**k / math.factorial(k) for k in range(num_servers)) + all_busy)


def poisson(load: float, num_requests: int) -> list[Row]:
    """Exponential gaps and lengths; a request takes 1000 steps in the mean, which is a second."""
    rng, now = random.Random(1), 0.0
    rows = []
    for _ in range(num_requests):
        now += rng.expovariate(load)
        rows.append((now, 1, max(1, round(rng.expovariate(1 / 1000)))))
    return rows


def waits_on(num_servers: int, rows: Sequence[Row]) -> list[float]:
    """How long each waits for one of so many replicas that run one request at a time, ascending."""
    of = entry(fixed(num_servers), queued=10**6, max_batch_size=1)
    outcome = simulated(of, rows, Speed(step_s=0.001, prefill_tokens_per_s=1e12), timeout_s=1e9)
    return [seconds - 0.001 for seconds in outcome.first_token_s]


@pytest.mark.parametrize(("num_servers", "load"), [(1, 0.5), (3, 1.8)])
def test_as_many_requests_wait_as_erlangs_formula_says_and_for_as_long(num_servers: int, load: float) -> None:
    waits = waits_on(num_servers, poisson(load, 25_000))
    expected = erlang_c(num_servers, load)
    assert sum(wait > 1e-4 for wait in waits) / len(waits) == pytest.approx(expected, rel=0.03)
    assert sum(waits) / len(waits) == pytest.approx(expected / (num_servers - load), rel=0.07)


def test_each_request_waits_until_the_first_of_all_servers_is_free() -> None:
    rows = poisson(6.0, 5_000)
    free_at, expected = [0.0] * 10, []
    for arrival, _, num_steps in rows:
        start = max(arrival, heapq.heappop(free_at))
        expected.append(start - arrival)
        heapq.heappush(free_at, start + num_steps * 0.001)
    assert waits_on(10, rows) == pytest.approx(sorted(expected), abs=1e-4)


def test_sequences_that_share_a_replica_are_slowed_as_processor_sharing_says() -> None:
    rng = random.Random(2)
    load, now = 0.6, 0.0
    rows = []
    for _ in range(20_000):
        now += rng.expovariate(load)
        rows.append((now, 1, max(1, round(rng.lognormvariate(math.log(1000) - 0.5, 1)))))
    outcome = simulated(
        entry(max_batch_size=500, max_batch_tokens=512),
        rows,
        Speed(step_s=0.001, step_per_sequence_s=0.001, prefill_tokens_per_s=1e12),
        timeout_s=1e9,
    )
    assert sum(outcome.latency_s) / len(outcome.latency_s) == pytest.approx(1 / (1 - load), rel=0.04)


# Nothing is lost


@pytest.mark.parametrize("seed", range(8))
def test_every_request_ends_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    workload = Workload(
        requests_per_s=rng.choice([0.2, 2.0, 6.0]),
        duration_s=600.0,
        swing=rng.random(),
        bursts_per_hour=10,
        burst_factor=rng.choice([3, 20]),
        spread=1.5,
    )
    autoscaling = {
        "min_replicas": rng.choice([0, 1]),
        "max_replicas": 6,
        "target_ongoing_requests": rng.choice([1, 4]),
        "upscale_delay_s": rng.choice([0, 20]),
        "downscale_delay_s": rng.choice([0, 60]),
    }
    of = entry(autoscaling, queued=rng.choice([0, 5, 100]), max_model_len=2048, kv_cache_tokens=4096)
    trace = synthetic_trace(workload, str(seed))
    outcome = simulated(of, trace, timeout_s=rng.choice([5.0, 60.0, 600.0]))
    assert outcome.num_requests == len(trace)
    assert len(outcome.latency_s) == len(outcome.first_token_s) == outcome.endings.get(Ending.DONE, 0)
    assert all(0 <= first <= last for first, last in zip(outcome.first_token_s, outcome.latency_s, strict=True))
    assert outcome.replica_s <= outcome.peak_replicas * outcome.duration_s + 1e-6


def test_the_same_seed_gives_the_same_outcome_and_another_another() -> None:
    workload = Workload(requests_per_s=3.0, duration_s=600.0, swing=0.5, bursts_per_hour=10)
    of = entry({"max_replicas": 5, "upscale_delay_s": 5, "downscale_delay_s": 30})
    one, again, other = (simulated(of, synthetic_trace(workload, seed)) for seed in ("1", "1", "2"))
    assert one == again
    assert one != other


def test_no_requests_are_no_work() -> None:
    outcome = simulated(entry(fixed(2)), Trace.of([], 3600.0))
    assert (outcome.num_requests, outcome.replica_s) == (0, 7200.0)
    assert percentile(outcome.latency_s, 0.99) is None


# Admission


def test_a_full_queue_refuses() -> None:
    outcome = simulated(entry(fixed(1), queued=3, max_batch_size=2), [(0.0, 10, 100)] * 10)
    assert outcome.endings == {Ending.FULL: 5, Ending.DONE: 5}


def test_what_waits_longer_than_its_deadline_is_ended() -> None:
    outcome = simulated(entry(fixed(1), max_batch_size=1), [(0.0, 10, 100)] * 4, timeout_s=5.0)
    assert outcome.endings == {Ending.DONE: 2, Ending.EXPIRED: 2}
    assert outcome.duration_s == pytest.approx(5.0)


@pytest.mark.parametrize("limit", [{"max_input_tokens": 100}, {"kv_cache_tokens": 100}, {"max_model_len": 101}])
def test_a_prompt_that_does_not_fit_is_refused(limit: dict[str, Any]) -> None:
    outcome = simulated(entry(**limit), [(0.0, 100, 1), (0.0, 101, 1)])
    assert outcome.endings == {Ending.DONE: 1, Ending.TOO_LONG: 1}


def test_an_answer_ends_where_the_context_does() -> None:
    long, short = (simulated(entry(max_model_len=200), [(0.0, 100, tokens)]) for tokens in (5000, 100))
    assert long.latency_s == short.latency_s


# Replicas


def expected_decisions(of: RegistryEntry, load_at: list[tuple[float, int]], until: float) -> list[tuple[float, int]]:
    """What the autoscaler decides when so many requests wait or run from then on, and one replica serves."""
    config = of.deployment.autoscaling_config
    scaler, history = Autoscaler(config), LoadHistory("g", "a/b")
    target = of.num_replicas
    decisions = [(0.0, target)]
    for tick in range(int(until) + 1):
        now = float(tick)
        ongoing = [number for at, number in load_at if at < now or now == at == 0.0]
        number = ongoing[-1] if ongoing else 0
        load = Load(queued=max(0, number - 4), running={"r": min(number, 4)})
        if now % sampling_interval_s(config) == 0:
            history.record(now, load, config.look_back_period_s)
        if now % config.metrics_interval_s == 0:
            scaler.record(history.report(now, load, config.look_back_period_s))
        decided = scaler.decide(now, num_running=1, target=target, replica_ids=["r"])
        if decided != target:
            target = decided
            decisions.append((now, target))
    return decisions


@pytest.mark.parametrize(
    "autoscaling",
    [
        {"upscale_delay_s": 30},
        {"upscale_delay_s": 0, "upscaling_factor": 0.5},
        {"upscale_delay_s": 7, "look_back_period_s": 50, "metrics_interval_s": 5},
        {"upscale_delay_s": 12, "target_ongoing_requests": 6},
    ],
)
def test_the_target_is_what_the_autoscaler_decides_for_the_same_load(autoscaling: dict[str, Any]) -> None:
    of = entry({"max_replicas": 9, **autoscaling})
    arrivals = [(3.5, 3), (40.5, 6), (41.5, 12), (90.5, 16)]
    never = 10**9
    rows, before = [], 0
    for at, number in arrivals:
        rows += [(at, 10, never)] * (number - before)
        before = number
    # Nothing starts in time, and nothing ends before everything expires.
    trace = Trace.of(rows)
    outcome = simulated(of, trace, Speed(step_s=0.02, cold_start_s=1e6), timeout_s=200.0)
    decisions = [decision for decision in outcome.decisions if decision[0] < 200.0]
    assert decisions == expected_decisions(of, arrivals, until=199.0)
    assert len(decisions) > 2


def test_a_model_without_replicas_wakes_at_the_first_request_and_sleeps_again() -> None:
    of = entry({"min_replicas": 0, "max_replicas": 4, "downscale_delay_s": 60, "metrics_interval_s": 30})
    outcome = simulated(of, Trace.of([(101.5, 10, 10)], 1000.0))
    (beginning, woken, asleep) = outcome.decisions
    assert beginning == (0.0, 0)
    assert woken == (102.0, 1)
    assert outcome.replica_s == asleep[0] - woken[0] < 200
    assert asleep[1] == 0
    assert outcome.first_token_s[0] == pytest.approx(102.0 + 20.0 - 101.5, abs=0.1)


def test_replicas_that_are_not_wanted_any_more_finish_what_they_have_and_are_paid_until_then() -> None:
    of = entry({"max_replicas": 3, "initial_replicas": 3, "downscale_delay_s": 0, "look_back_period_s": 5,
                "metrics_interval_s": 1, "target_ongoing_requests": 4})  # fmt: skip
    outcome = simulated(of, Trace.of([(0.0, 10, 1000)] * 3, 1000.0))
    assert outcome.endings == {Ending.DONE: 3}
    assert outcome.decisions[-1][1] == 1
    (alone,) = set(outcome.latency_s)
    assert outcome.replica_s == pytest.approx(1000.0 + 2 * alone, rel=0.01)


def test_replicas_are_paid_while_they_load() -> None:
    of = entry({"max_replicas": 2, "upscale_delay_s": 0, "downscale_delay_s": 10_000})
    short, long = (
        simulated(of, Trace.of([(0.0, 10, 1000)] * 40, 300.0), Speed(step_s=0.02, cold_start_s=seconds))
        for seconds in (1.0, 250.0)
    )
    assert short.peak_replicas == long.peak_replicas == 2
    assert long.replica_s == pytest.approx(short.replica_s, abs=30)


@pytest.mark.parametrize(
    ("target", "most"),
    [
        ({"target_ongoing_tokens": 2000}, 4),
        ({"target_ongoing_tokens": 200_000}, 1),
        ({"target_kv_cache_usage": 0.1}, 4),
    ],
)
def test_tokens_and_kv_cache_are_measured_where_they_are_asked_for(target: dict[str, float], most: int) -> None:
    of = entry({"max_replicas": 4, "upscale_delay_s": 5, **target}, kv_cache_tokens=10_000)
    rows = [(second * 1.0, 800, 200) for second in range(120)]
    assert simulated(of, rows).peak_replicas == most
