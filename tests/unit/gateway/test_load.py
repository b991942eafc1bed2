"""A gateway remembers its load over the look-back period, and no longer."""

from __future__ import annotations

import pytest

from gateway.load import Load, LoadHistory, sampling_interval_s
from model_registry.schema import AutoscalingConfig


def test_a_report_holds_the_samples_of_the_look_back_period_and_the_present() -> None:
    history = LoadHistory("gateway", "a/b")
    for at in (0.0, 10.0, 20.0, 30.0):
        history.record(at, Load(queued=int(at), running={"r": 1}), 20.0)
    report = history.report(31.0, Load(queued=5, running={"r": 2}), 20.0)
    assert (report.gateway_id, report.model_id, report.at) == ("gateway", "a/b", 31.0)
    assert list(report.queued) == [(20.0, 20), (30.0, 30), (31.0, 5)]
    assert report.running == {"r": ((20.0, 1), (30.0, 1), (31.0, 2))}


def test_a_longer_look_back_period_reports_more() -> None:
    history = LoadHistory("gateway", "a/b")
    for at in range(100):
        history.record(float(at), Load(), 60.0)
    assert len(history.report(100.0, Load(), 60.0).queued) == 60


def test_a_replica_that_is_not_used_any_more_is_left_out() -> None:
    history = LoadHistory("gateway", "a/b")
    history.record(0.0, Load(running={"r": 1, "s": 2}), 20.0)
    assert history.report(1.0, Load(running={"s": 2, "t": 0}), 20.0).running == {
        "s": ((0.0, 2), (1.0, 2)),
        "t": ((1.0, 0),),
    }


@pytest.mark.parametrize(("look_back_s", "interval_s", "expected"), [(30, 10, 6), (100, 10, 10), (5, 10, 1)])
def test_the_load_is_looked_at_five_times_per_look_back_period_and_at_each_report(
    look_back_s: float, interval_s: float, expected: float
) -> None:
    config = AutoscalingConfig(look_back_period_s=look_back_s, metrics_interval_s=interval_s)
    assert sampling_interval_s(config) == expected
