"""The rules of autoscaling, one by one. That all of them together are Ray Serve's is tested against Serve itself."""

from __future__ import annotations

from typing import Any

import pytest

from model_registry.contract import LoadReport
from model_registry.schema import AutoscalingConfig
from workers.pool.autoscaling import Autoscaler


def settings(**changed: Any) -> AutoscalingConfig:
    """Two requests per replica, one to ten replicas, no delays; None takes a key away."""
    keys = {"max_replicas": 10, "target_ongoing_requests": 2, "upscale_delay_s": 0, "downscale_delay_s": 0, **changed}
    return AutoscalingConfig.model_validate({key: value for key, value in keys.items() if value is not None})


def report(at: float, queued: float = 0, *, gateway_id: str = "g", **running: float) -> LoadReport:
    """A load that is the same since ever."""
    return LoadReport(
        gateway_id=gateway_id,
        model_id="a/b",
        at=at,
        queued=((0.0, queued),),
        running={replica_id: ((0.0, number),) for replica_id, number in running.items()},
    )


def decide(scaler: Autoscaler, now: float, replicas: int, target: int | None = None) -> int:
    """With replicas r1, r2 …; the target is their number unless it is given."""
    ids = [f"r{number + 1}" for number in range(replicas)]
    return scaler.decide(
        now, num_running=replicas, target=replicas if target is None else target, replica_ids=frozenset(ids)
    )


def deciding(load: float, replicas: int, target: int | None = None, **changed: Any) -> int:
    """The decision for so many requests, all of them queued."""
    scaler = Autoscaler(settings(**changed))
    scaler.record(report(1.0, load))
    return decide(scaler, 2.0, replicas, target)


# How many


@pytest.mark.parametrize(("load", "wanted"), [(6, 3), (7, 4), (4, 2), (2, 1), (0.1, 1)])
def test_there_are_as_many_replicas_as_have_their_share_of_the_load_rounded_up(load: float, wanted: int) -> None:
    assert deciding(load, replicas=2) == wanted


def test_another_target_asks_for_another_number() -> None:
    assert deciding(12, replicas=2, target_ongoing_requests=4) == 3
    assert deciding(12, replicas=2, target_ongoing_requests=1.5) == 8


def test_queued_and_running_requests_of_all_gateways_count() -> None:
    scaler = Autoscaler(settings())
    scaler.record(report(1.0, 1, r1=2, r2=3))
    scaler.record(report(1.0, 4, gateway_id="h", r1=2))
    assert decide(scaler, 2.0, 2) == 6
    assert scaler.ongoing_requests == 12


def test_what_runs_on_a_replica_that_has_gone_does_not_count() -> None:
    scaler = Autoscaler(settings())
    scaler.record(report(1.0, 0, r1=4, r9=40))
    assert decide(scaler, 2.0, 1) == 2


def test_the_number_stays_within_its_bounds() -> None:
    assert deciding(1000, replicas=2) == 10
    assert deciding(0, replicas=5, min_replicas=3) == 3
    assert deciding(0, replicas=2, target=2, min_replicas=4, max_replicas=4) == 4


def test_the_load_is_averaged_over_what_is_reported() -> None:
    scaler = Autoscaler(settings())
    scaler.record(LoadReport(gateway_id="g", model_id="a/b", at=30.0, queued=((0.0, 0.0), (20.0, 12.0))))
    assert decide(scaler, 30.0, 1) == 2


# Tokens and KV cache in place of requests


def tokens(at: float, queued: float = 0, *, gateway_id: str = "g", **running: float) -> LoadReport:
    """One request waits, one runs on each replica, and these are their tokens."""
    return LoadReport(
        gateway_id=gateway_id,
        model_id="a/b",
        at=at,
        queued=((0.0, 1.0),),
        running=dict.fromkeys(running, ((0.0, 1.0),)),
        queued_tokens=((0.0, queued),),
        running_tokens={replica_id: ((0.0, number),) for replica_id, number in running.items()},
    )


def kv(at: float, queued: float = 0, ongoing: float = 1, *, gateway_id: str = "g", **usage: float) -> LoadReport:
    """Each replica runs so many requests, and says this of its KV cache."""
    return LoadReport(
        gateway_id=gateway_id,
        model_id="a/b",
        at=at,
        queued=((0.0, queued),),
        running=dict.fromkeys(usage, ((0.0, ongoing),)),
        kv_cache_usage={replica_id: ((0.0, share),) for replica_id, share in usage.items()},
    )


def test_tokens_of_all_gateways_may_take_the_place_of_requests() -> None:
    scaler = Autoscaler(settings(target_ongoing_requests=None, target_ongoing_tokens=1000))
    scaler.record(tokens(1.0, 500, r1=1500, r9=9000))
    scaler.record(tokens(1.0, 500, gateway_id="h", r1=1500))
    assert decide(scaler, 2.0, 1) == 4
    scaler.reconfigure(settings(target_ongoing_requests=None, target_ongoing_tokens=2000))
    assert decide(scaler, 2.0, 1) == 2


def test_the_share_of_the_kv_cache_in_use_is_the_mean_over_replicas() -> None:
    scaler = Autoscaler(settings(target_ongoing_requests=None, target_kv_cache_usage=0.5))
    scaler.record(kv(1.0, r1=1.0, r2=0.4))
    assert decide(scaler, 2.0, 2) == 3
    scaler.reconfigure(settings(target_ongoing_requests=None, target_kv_cache_usage=0.8))
    assert decide(scaler, 2.0, 2) == 2


def test_a_replica_that_two_gateways_hear_has_one_kv_cache() -> None:
    scaler = Autoscaler(settings(target_ongoing_requests=None, target_kv_cache_usage=0.5))
    scaler.record(kv(1.0, r1=1.0))
    scaler.record(kv(1.0, gateway_id="h", r1=0.9))
    assert decide(scaler, 2.0, 1) == 2
    scaler.record(kv(3.0, r1=0.2))
    assert decide(scaler, 3.0, 1) == 1


def test_what_waits_needs_as_much_kv_cache_as_what_runs() -> None:
    scaler = Autoscaler(settings(target_ongoing_requests=None, target_kv_cache_usage=1.0))
    scaler.record(kv(1.0, queued=30, ongoing=10, r1=0.5))
    assert decide(scaler, 2.0, 1) == 2
    scaler.record(kv(2.0, queued=70, ongoing=10, r1=0.5))
    assert decide(scaler, 3.0, 1) == 4


def test_of_two_measures_the_one_that_asks_for_more_counts() -> None:
    both = settings(target_ongoing_requests=None, target_ongoing_tokens=1000, target_kv_cache_usage=0.5)
    scaler = Autoscaler(both)
    scaler.record(kv(1.0, r1=1.0))
    assert decide(scaler, 2.0, 1) == 2
    scaler.record(tokens(2.0, 2500, r1=1500))
    assert decide(scaler, 3.0, 1) == 4


@pytest.mark.parametrize("target", [{"target_ongoing_tokens": 1000}, {"target_kv_cache_usage": 0.5}])
def test_work_of_unknown_size_keeps_one_replica_and_wakes_one(target: dict[str, float]) -> None:
    scaler = Autoscaler(settings(target_ongoing_requests=None, min_replicas=0, **target))
    scaler.record(report(1.0, 1))
    assert [decide(scaler, 2.0, replicas) for replicas in (3, 1, 0)] == [1, 1, 1]
    scaler.record(report(2.0, 0))
    assert decide(scaler, 3.0, 1) == 0


# How much of the way


def test_a_smoothing_factor_goes_a_part_of_the_way_up_and_down() -> None:
    assert deciding(20, replicas=2, smoothing_factor=0.5) == 6
    assert deciding(2, replicas=9, smoothing_factor=0.5) == 5


def test_the_factors_of_each_direction_come_before_the_common_one() -> None:
    factors: dict[str, Any] = {"smoothing_factor": 0.5, "upscaling_factor": 0.25, "downscaling_factor": 0.75}
    assert deciding(20, replicas=2, **factors) == 4
    assert deciding(2, replicas=9, **factors) == 3


def test_a_small_factor_does_not_keep_a_replica_too_many_for_ever() -> None:
    assert deciding(2, replicas=2, downscaling_factor=0.1) == 1


# When


def test_more_are_wanted_for_the_upscale_delay_before_they_come() -> None:
    scaler = Autoscaler(settings(upscale_delay_s=30))
    scaler.record(report(1.0, 8))
    assert [decide(scaler, now, 1) for now in (2.0, 5.0, 7.0)] == [1, 1, 1]
    scaler.record(report(29.0, 8))
    assert [decide(scaler, now, 1) for now in (31.9, 32.0)] == [1, 4]


def test_fewer_are_wanted_for_the_downscale_delay_before_they_go() -> None:
    scaler = Autoscaler(settings(downscale_delay_s=60))
    assert [decide(scaler, now, 4) for now in (0.0, 59.9, 60.0)] == [4, 4, 1]


def test_a_wish_for_the_other_direction_begins_the_delay_anew() -> None:
    scaler = Autoscaler(settings(upscale_delay_s=10))
    for at in (0.0, 8.0, 16.0):
        scaler.record(report(at, 8))
        assert decide(scaler, at, 1) == (4 if at == 16.0 else 1)
    scaler = Autoscaler(settings(upscale_delay_s=10, downscale_delay_s=100))
    for at, load in ((0.0, 8), (8.0, 1), (16.0, 8), (24.0, 8)):
        scaler.record(report(at, load))
        assert decide(scaler, at, 2) == 2
    assert decide(scaler, 26.0, 2) == 4


def test_a_moment_without_a_wish_begins_the_delay_anew() -> None:
    scaler = Autoscaler(settings(upscale_delay_s=10))
    for at, load in ((0.0, 8), (8.0, 4), (9.0, 8)):
        scaler.record(report(at, load))
        assert decide(scaler, at, 2) == 2
    assert decide(scaler, 18.0, 2) == 2
    assert decide(scaler, 19.0, 2) == 4


def test_after_a_step_the_next_one_waits_again() -> None:
    scaler = Autoscaler(settings(metrics_interval_s=30, upscale_delay_s=10, upscaling_factor=0.5))
    scaler.record(report(0.0, 20))
    assert [decide(scaler, now, 2) for now in (0.0, 9.9, 10.0)] == [2, 2, 6]
    assert [decide(scaler, now, 6) for now in (11.0, 20.9, 21.0)] == [6, 6, 8]


# To zero and back


def test_the_last_replica_goes_alone() -> None:
    assert deciding(0, replicas=5, min_replicas=0) == 1
    assert deciding(0, replicas=1, min_replicas=0) == 0


def test_the_last_replica_may_have_a_delay_of_its_own() -> None:
    scaler = Autoscaler(settings(min_replicas=0, downscale_to_zero_delay_s=20))
    assert decide(scaler, 0.0, 2) == 1
    assert [decide(scaler, now, 1) for now in (1.0, 20.9, 21.0)] == [1, 1, 0]


def test_without_it_the_last_replica_waits_like_the_others() -> None:
    scaler = Autoscaler(settings(min_replicas=0, downscale_delay_s=20))
    assert [decide(scaler, now, 1) for now in (0.0, 19.9, 20.0)] == [1, 1, 0]


def test_the_first_request_wakes_a_model_at_once() -> None:
    assert deciding(0.001, replicas=0, min_replicas=0, upscale_delay_s=1000) == 1
    assert deciding(50, replicas=0, min_replicas=0, upscaling_factor=2.5) == 3


def test_replicas_that_are_on_their_way_are_waited_for() -> None:
    assert deciding(50, replicas=0, target=2, min_replicas=0) == 2
    assert deciding(0, replicas=0, target=2, min_replicas=0) == 2
    assert deciding(0, replicas=0, target=0, min_replicas=0) == 0


# What gateways say


def test_a_gateway_that_falls_silent_is_forgotten_after_ten_seconds() -> None:
    scaler = Autoscaler(settings(metrics_interval_s=1))
    scaler.record(report(1.0, 8))
    assert [decide(scaler, now, 1) for now in (1.0, 10.9, 11.0)] == [4, 4, 1]


def test_one_that_should_report_seldom_is_forgotten_after_twice_its_interval() -> None:
    scaler = Autoscaler(settings(metrics_interval_s=30))
    scaler.record(report(1.0, 8))
    assert [decide(scaler, now, 1) for now in (1.0, 60.9, 61.0)] == [4, 4, 1]


def test_a_gateway_whose_clock_is_wrong_is_heard_all_the_same() -> None:
    scaler = Autoscaler(settings())
    scaler.record(report(-500.0, 8))
    assert decide(scaler, 1.0, 1) == 4
    scaler.record(report(-490.0, 6))
    assert decide(scaler, 11.0, 1) == 3


def test_a_report_that_comes_late_does_not_replace_a_later_one() -> None:
    scaler = Autoscaler(settings())
    scaler.record(report(5.0, 8))
    scaler.record(report(4.0, 2))
    assert decide(scaler, 6.0, 1) == 4
    scaler.record(report(5.5, 2))
    assert decide(scaler, 6.0, 1) == 1


def test_a_gateway_that_says_goodbye_takes_its_load_with_it() -> None:
    scaler = Autoscaler(settings())
    scaler.record(report(1.0, 8))
    assert decide(scaler, 1.0, 1) == 4
    scaler.forget("g")
    assert decide(scaler, 1.0, 1) == 1


def test_other_settings_keep_the_load_and_begin_the_delay_anew() -> None:
    scaler = Autoscaler(settings(metrics_interval_s=30, upscale_delay_s=5))
    scaler.record(report(1.0, 8))
    assert decide(scaler, 1.0, 1) == 1
    scaler.reconfigure(settings(metrics_interval_s=30, upscale_delay_s=10, target_ongoing_requests=4))
    assert [decide(scaler, now, 1) for now in (6.0, 15.9, 16.0)] == [1, 1, 2]
