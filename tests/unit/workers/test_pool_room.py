"""Who is helped first, and when a busy replica is drained for somebody else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from workers.pool import room as room_module
from workers.pool.eviction import Resident
from workers.pool.placement import Placement, Resources
from workers.pool.room import PATIENCE_S, RoomKeeper

GPU: Resources = {"GPU": 1}


@dataclass
class FakeDeployment:
    """A model of at most one replica, which takes one GPU."""

    name: str
    serves: bool = False
    is_busy: bool = False
    lacks_room: bool = False
    is_retiring: bool = False
    last_used_at: float = 0.0
    evicted: list[str] = field(default_factory=list)
    placement: Placement = field(default_factory=lambda: Placement((GPU,), "PACK"))

    @property
    def serving_ids(self) -> frozenset[str]:
        return frozenset([self.name]) if self.serves else frozenset()

    async def residents(self, *, busy_too: bool) -> list[Resident]:
        if not self.serves or (self.is_busy and not busy_too):
            return []
        reserved = (("node", GPU),)
        return [Resident(model_id=self.name, replica_id=self.name, reserved=reserved, last_used_at=self.last_used_at)]

    def evict(self, replica_id: str) -> None:
        self.evicted.append(replica_id)


@pytest.fixture(autouse=True)
def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "free_resources", lambda: {"node": {}})


def keeper(*deployments: FakeDeployment) -> RoomKeeper:
    return RoomKeeper({one.name: one for one in deployments})  # type: ignore[misc]


async def test_the_idle_model_used_least_lately_goes_at_once() -> None:
    old, new = FakeDeployment("old", serves=True, last_used_at=1), FakeDeployment("new", serves=True, last_used_at=2)
    await keeper(new, old, FakeDeployment("hungry", lacks_room=True)).make_room(0.0)
    assert (old.evicted, new.evicted) == (["old"], [])


async def test_a_busy_model_goes_only_after_the_other_has_waited_in_vain() -> None:
    busy = FakeDeployment("busy", serves=True, is_busy=True)
    one = keeper(busy, FakeDeployment("hungry", lacks_room=True))
    await one.make_room(100.0)
    await one.make_room(100.0 + PATIENCE_S)
    assert busy.evicted == []
    await one.make_room(100.1 + PATIENCE_S)
    assert busy.evicted == ["busy"]


async def test_no_busy_model_goes_for_one_that_serves_already() -> None:
    busy = FakeDeployment("busy", serves=True, is_busy=True)
    one = keeper(busy, FakeDeployment("growing", serves=True, is_busy=True, lacks_room=True))
    for now in (0.0, 1_000.0):
        await one.make_room(now)
    assert busy.evicted == []


async def test_the_wait_starts_anew_once_there_was_room() -> None:
    busy, hungry = FakeDeployment("busy", serves=True, is_busy=True), FakeDeployment("hungry", lacks_room=True)
    one = keeper(busy, hungry)
    await one.make_room(0.0)
    hungry.lacks_room = False
    await one.make_room(5.0)
    hungry.lacks_room = True
    await one.make_room(PATIENCE_S + 1)
    assert busy.evicted == []


async def test_what_is_on_its_way_out_is_waited_for() -> None:
    idle, leaving = FakeDeployment("idle", serves=True), FakeDeployment("leaving", is_retiring=True)
    await keeper(idle, leaving, FakeDeployment("hungry", lacks_room=True)).make_room(0.0)
    assert idle.evicted == []


async def test_the_one_that_waited_longest_is_helped_first_and_one_that_cannot_be_helped_keeps_no_other() -> None:
    idle = FakeDeployment("idle", serves=True)
    giant = FakeDeployment("giant", lacks_room=True, placement=Placement(({"GPU": 99},), "PACK"))
    hungry = FakeDeployment("hungry")
    one = keeper(idle, giant, hungry)
    await one.make_room(0.0)
    hungry.lacks_room = True
    await one.make_room(1.0)
    assert idle.evicted == ["idle"]
