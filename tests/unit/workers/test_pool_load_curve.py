"""Values of several sources become one sum, and its mean is weighted by time."""

from __future__ import annotations

import pytest

from workers.pool.load_curve import LEAST_SPAN_S, LoadCurve


def test_nothing_known_is_nothing_to_do() -> None:
    assert LoadCurve.total_of([]).mean(100.0) == 0
    assert LoadCurve.total_of([(), ()]).mean(100.0) == 0


def test_a_value_holds_until_the_next_and_the_last_until_now() -> None:
    curve = LoadCurve.total_of([((0.0, 2.0), (6.0, 8.0))])
    assert curve.mean(10.0) == pytest.approx((2 * 6 + 8 * 4) / 10)
    assert curve.mean(14.0) == pytest.approx((2 * 6 + 8 * 8) / 14)


def test_sources_are_summed_at_each_change() -> None:
    curve = LoadCurve.total_of([((0.0, 1.0), (4.0, 3.0)), ((0.0, 2.0), (2.0, 0.0))])
    assert curve.mean(6.0) == pytest.approx((3 * 2 + 1 * 2 + 3 * 2) / 6)


def test_the_mean_begins_when_every_source_has_a_value() -> None:
    curve = LoadCurve.total_of([((0.0, 9.0), (5.0, 1.0)), ((5.0, 1.0),)])
    assert curve.mean(10.0) == pytest.approx(2.0)


def test_a_value_from_before_the_beginning_is_carried_into_it() -> None:
    curve = LoadCurve.total_of([((0.0, 4.0),), ((5.0, 0.0), (6.0, 2.0))])
    assert curve.mean(7.0) == pytest.approx((4 * 1 + 6 * 1) / 2)


def test_sources_that_never_change_from_nothing_do_not_move_the_mean() -> None:
    assert LoadCurve.total_of([((0.0, 0.0), (5.0, 0.0)), ((0.0, 0.0),)]).mean(10.0) == 0


def test_a_value_of_this_moment_counts_already() -> None:
    curve = LoadCurve.total_of([((0.0, 0.0), (10.0, 5.0))])
    assert curve.mean(10.0) == pytest.approx(5 * LEAST_SPAN_S / (10 + LEAST_SPAN_S))


def test_a_clock_that_runs_ahead_is_taken_for_this_moment() -> None:
    assert LoadCurve.total_of([((12.0, 5.0),)]).mean(10.0) == 5.0


def test_moments_within_a_hundredth_of_a_second_are_one() -> None:
    curve = LoadCurve.total_of([((1.001, 3.0),), ((1.004, 1.0),)])
    assert (curve.at, curve.value, curve.span_s) == (1.0, 4.0, 0.0)
