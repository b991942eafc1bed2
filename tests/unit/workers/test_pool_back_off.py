"""Failing again and again gets slower; a replica that served a while is replaced at once."""

from __future__ import annotations

from workers.pool.back_off import MAX_DELAY_S, STABLE_S, BackOff


def test_failed_starts_wait_twice_as_long_each_time_up_to_a_minute() -> None:
    back_off = BackOff()
    assert [back_off.after_failed_start() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_first_death_is_replaced_at_once_and_a_crash_loop_is_not() -> None:
    back_off = BackOff()
    assert [back_off.after_death(served_s=1) for _ in range(4)] == [0, 1, 2, 4]


def test_a_replica_that_served_long_owes_nothing_to_earlier_failures() -> None:
    back_off = BackOff()
    for _ in range(5):
        back_off.after_failed_start()
    assert back_off.after_death(served_s=STABLE_S) == 0
    assert back_off.num_failures == 1


def test_thousands_of_failures_still_wait_a_minute() -> None:
    back_off = BackOff()
    for _ in range(5000):
        back_off.after_failed_start()
    assert back_off.after_failed_start() == MAX_DELAY_S
