"""One simulated replica: requests slow each other down as in one batch, and each ends once."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest

from aviary.simulation.least_loaded import LeastLoaded
from aviary.simulation.replica import Ending, Limits, SimulatedReplica, Speed
from aviary.simulation.trace import Row, Trace

FAST_PREFILL = 1e12
LIMITS = Limits(max_batch_size=8, max_batch_tokens=100)


class Run:
    """A replica that gets its requests when they arrive, and what becomes of them."""

    def __init__(self, rows: Sequence[Row], speed: Speed, limits: Limits = LIMITS, timeout_s: float = inf) -> None:
        self.replica = SimulatedReplica("r", Trace.of(rows), speed, limits, timeout_s)
        self.first_token_at: dict[int, float] = {}
        self.ended_at: dict[int, float] = {}
        self.endings: dict[int, Ending] = {}
        self.most_running = 0
        for request, (arrival, _, _) in enumerate(rows):
            self._go_on_until(arrival)
            self.replica.submit(request, arrival)
        self._go_on_until(inf)

    def _go_on_until(self, moment: float) -> None:
        while (now := self.replica.next_change()) <= moment and now < inf:
            for request, ending in self.replica.advance(now, self.first_token_at):
                assert request not in self.endings
                self.endings[request] = ending
                self.ended_at[request] = now
            self.most_running = max(self.most_running, self.replica.num_running)


def test_a_request_alone_takes_its_prefill_and_its_steps() -> None:
    run = Run([(1.0, 1000, 50)], Speed(step_s=0.1, prefill_tokens_per_s=1000.0))
    # 1000 tokens in chunks of 100, each a step of 0.1 s and 0.1 s of its own
    assert run.first_token_at[0] == pytest.approx(1.0 + 2.0 + 0.1)
    assert run.ended_at[0] == pytest.approx(1.0 + 2.0 + 5.0)
    assert run.endings == {0: Ending.DONE}


def test_each_further_sequence_makes_a_step_longer() -> None:
    speed = Speed(step_s=0.1, step_per_sequence_s=0.02, prefill_tokens_per_s=FAST_PREFILL)
    run = Run([(0.0, 1, 10)] * 4, speed)
    assert [run.ended_at[request] for request in range(4)] == pytest.approx([10 * 0.16] * 4, rel=0.05)


def test_a_sequence_that_ends_makes_the_others_faster() -> None:
    speed = Speed(step_s=0.1, step_per_sequence_s=0.1, prefill_tokens_per_s=FAST_PREFILL)
    run = Run([(0.0, 1, 10), (0.0, 1, 30)], speed, Limits(max_batch_size=8, max_batch_tokens=10**6))
    assert run.ended_at[0] == pytest.approx(10 * 0.2, rel=0.01)
    assert run.ended_at[1] == pytest.approx(10 * 0.2 + 20 * 0.1, rel=0.01)


def test_a_prompt_slows_the_sequences_that_decode_while_it_is_computed() -> None:
    speed = Speed(step_s=0.1, prefill_tokens_per_s=1000.0)
    alone, beside = Run([(0.0, 1, 100)], speed), Run([(0.0, 1, 100), (1.0, 1000, 1)], speed)
    assert beside.ended_at[0] - alone.ended_at[0] == pytest.approx(1.0, rel=0.05)


def test_prompts_are_computed_one_after_the_other() -> None:
    run = Run([(0.0, 1000, 1), (0.0, 1000, 1)], Speed(step_s=0.001, prefill_tokens_per_s=1000.0))
    assert run.first_token_at[1] - run.first_token_at[0] == pytest.approx(1.0, rel=0.05)


def test_no_more_run_than_the_batch_holds() -> None:
    run = Run([(0.0, 1, 10)] * 20, Speed(step_s=0.1, prefill_tokens_per_s=FAST_PREFILL))
    assert run.most_running == 8
    assert sorted(run.ended_at.values()) == pytest.approx([1.0] * 8 + [2.0] * 8 + [3.0] * 4, rel=0.05)


def test_a_prompt_waits_for_room_in_the_kv_cache() -> None:
    limits = Limits(max_batch_size=8, max_batch_tokens=1000, kv_cache_tokens=100)
    run = Run([(0.0, 60, 10), (0.0, 60, 10)], Speed(step_s=0.1, prefill_tokens_per_s=FAST_PREFILL), limits)
    assert run.ended_at[1] == pytest.approx(2.0, rel=0.05)
    assert Run([(0.0, 40, 10), (0.0, 40, 10)], Speed(step_s=0.1), limits).ended_at[1] == pytest.approx(1.0, rel=0.05)


def test_the_kv_cache_holds_prompts_and_what_has_been_generated() -> None:
    limits = Limits(max_batch_size=8, max_batch_tokens=1000, kv_cache_tokens=1000)
    replica = SimulatedReplica("r", Trace.of([(0.0, 100, 50)]), Speed(step_s=0.1), limits, inf)
    replica.submit(0, 0.0)
    assert (replica.kv_tokens, replica.num_tokens) == (100, 100)
    replica.advance(replica.next_change(), {})
    began = replica.next_change() - 50 * 0.1
    replica.advance(began + 2.0, {})
    assert replica.kv_tokens == pytest.approx(120, abs=1)
    assert replica.num_tokens == pytest.approx(120, abs=1)
    assert replica.kv_cache_usage == pytest.approx(0.12, abs=0.001)


@pytest.mark.parametrize("timeout_s", [0.5, 1.05, 3.0])
def test_a_request_whose_deadline_passes_is_removed_wherever_it_is(timeout_s: float) -> None:
    rows = [(0.0, 1000, 30)] * 3
    run = Run(rows, Speed(step_s=0.01, prefill_tokens_per_s=1000.0), Limits(max_batch_size=2, max_batch_tokens=100),
              timeout_s)  # fmt: skip
    late = {request for request, ending in run.endings.items() if ending is Ending.EXPIRED}
    assert late
    assert all(run.ended_at[request] == timeout_s for request in late)
    assert set(run.endings) == {0, 1, 2}
    assert run.replica.num_running == 0
    assert run.replica.kv_tokens == pytest.approx(0, abs=1e-6)


def test_after_a_prompt_that_expires_the_next_one_is_computed_from_its_beginning() -> None:
    run = Run([(0.0, 1000, 10), (0.5, 100, 10)], Speed(step_s=0.001, prefill_tokens_per_s=1000.0), timeout_s=0.6)
    assert run.endings == {0: Ending.EXPIRED, 1: Ending.DONE}
    assert run.first_token_at[1] == pytest.approx(0.7, abs=0.01)


def idle(name: str) -> SimulatedReplica:
    return SimulatedReplica(name, Trace.of([(0.0, 1, 1000)] * 10), Speed(step_s=0.1), LIMITS, inf)


def test_the_replica_with_the_fewest_requests_gets_the_next() -> None:
    free, replicas = LeastLoaded(2), [idle("a"), idle("b")]
    for replica in replicas:
        free.add(replica)
    assert free.room == 4
    taken = []
    for request in range(4):
        taken.append(free.take())
        taken[-1].submit(request, 0.0)
    assert [replica.name for replica in taken] == ["a", "b", "a", "b"]
    assert free.room == 0


def test_one_that_has_finished_something_gets_the_next() -> None:
    free, a, b = LeastLoaded(2), idle("a"), idle("b")
    free.add(a)
    for request in range(2):
        free.take().submit(request, 0.0)
    del a.in_flight[0]
    free.note_ended(a, 1)
    assert free.take() is a
    a.submit(2, 0.0)
    free.add(b)
    assert (free.take(), free.room) == (b, 1)


def test_one_that_is_removed_gets_nothing_and_the_idlest_is_known() -> None:
    free, a, b = LeastLoaded(3), idle("a"), idle("b")
    free.add(a)
    free.take().submit(0, 0.0)
    free.add(b)
    assert free.idlest() is b
    free.remove(b)
    assert free.room == 2
    assert free.take() is a
