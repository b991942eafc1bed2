"""What to start and what to retire, and that asking again and again arrives where it should."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from model_registry.contract import ReplicaState
from workers.pool.rollout import Candidate, Plan, plan

READY, STARTING, PENDING, FAILED = (
    ReplicaState.READY,
    ReplicaState.STARTING,
    ReplicaState.PENDING,
    ReplicaState.FAILED,
)


def current(state: ReplicaState = READY, *, lacks_room: bool = False, num_ongoing: int = 0) -> Candidate:
    return Candidate(is_current=True, state=state, lacks_room=lacks_room, num_ongoing=num_ongoing)


def outdated(state: ReplicaState = READY, *, num_ongoing: int = 0) -> Candidate:
    return Candidate(is_current=False, state=state, num_ongoing=num_ongoing)


def test_missing_replicas_are_started_all_at_once() -> None:
    assert plan([current()], 3) == Plan(num_new=2)


def test_of_too_many_those_go_that_do_not_serve_then_the_idle_then_the_newest() -> None:
    candidates = [current(num_ongoing=2), current(), current(), current(STARTING)]
    assert plan(candidates, 3).retired == (3,)
    assert plan(candidates, 2).retired == (2, 3)
    assert plan(candidates, 1).retired == (1, 2, 3)
    assert plan(candidates, 0).retired == (0, 1, 2, 3)


def test_a_new_revision_starts_before_an_old_replica_goes() -> None:
    assert plan([outdated()], 1) == Plan(num_new=1)
    assert plan([outdated(), current(STARTING)], 1) == Plan()
    assert plan([outdated(), current()], 1) == Plan(retired=(0,))


def test_a_quarter_more_than_wanted_live_at_the_same_time() -> None:
    assert plan([outdated()] * 8, 8) == Plan(num_new=2)
    assert plan([outdated()] * 8 + [current(STARTING)] * 2, 8) == Plan()
    assert plan([outdated()] * 8 + [current(), current(STARTING)], 8) == Plan(num_new=1, retired=(7,))


def test_an_old_replica_that_does_not_serve_goes_at_once() -> None:
    assert plan([outdated(STARTING), outdated(FAILED), outdated()], 3) == Plan(num_new=3, retired=(0, 1))


def test_a_new_revision_that_cannot_be_loaded_takes_no_old_replica_along() -> None:
    assert plan([outdated(), outdated(), current(FAILED)], 2) == Plan()


def test_where_nodes_are_full_one_old_replica_makes_room_at_a_time() -> None:
    candidates = [outdated(num_ongoing=1), outdated(), current(PENDING, lacks_room=True)]
    assert plan(candidates, 2) == Plan(num_new=1, retired=(1,))
    assert plan([candidates[0], candidates[2]], 2, is_draining=True).retired == ()


def test_the_only_replica_makes_room_for_its_successor() -> None:
    assert plan([outdated(), current(PENDING, lacks_room=True)], 1) == Plan(retired=(0,))


@dataclass
class World:
    """A cluster with room for some replicas, where what starts is ready a step later."""

    room: int
    candidates: list[Candidate]

    def step(self, target: int) -> Plan:
        wanted = plan(self.candidates, target)
        self.candidates = [one for index, one in enumerate(self.candidates) if index not in wanted.retired]
        self.candidates += [current(PENDING)] * wanted.num_new
        placed = sum(one.state is not PENDING for one in self.candidates)
        after = []
        for one in self.candidates:
            if one.state is STARTING:
                after.append(current())
            elif one.state is PENDING and placed < self.room:
                placed += 1
                after.append(current(STARTING))
            elif one.state is PENDING:
                after.append(current(PENDING, lacks_room=True))
            else:
                after.append(one)
        self.candidates = after
        return wanted


@given(
    num_outdated=st.integers(0, 8),
    num_current=st.integers(0, 8),
    target=st.integers(0, 8),
    spare=st.integers(0, 4),
)
def test_it_arrives_at_the_wanted_replicas_and_serves_all_the_way(
    num_outdated: int, num_current: int, target: int, spare: int
) -> None:
    room = max(num_outdated + num_current, target) + spare
    world = World(room, [outdated()] * num_outdated + [current()] * num_current)
    served = num_outdated + num_current
    for _ in range(100):
        world.step(target)
        serving = sum(one.state is READY for one in world.candidates)
        may_be_missing = 1 if num_outdated else 0
        assert serving >= min(served, target) - may_be_missing, "more than one was taken away before its successor"
        assert len(world.candidates) <= max(num_outdated + num_current, target + max(1, -(-target // 4)))
        served = serving
    assert world.candidates == [current()] * target
    assert world.step(target) == Plan()
