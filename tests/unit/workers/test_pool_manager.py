"""The manager's recovery and its end, over a store and a cluster that are kept in memory."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from model_registry.schema import RegistryEntry
from workers.pool import manager as manager_module
from workers.pool.errors import PoolError
from workers.pool.manager import PoolManager
from workers.pool.state import PoolOptions, PoolState, WantedModel

ENTRY = RegistryEntry.model_validate(
    {"model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}}}
)


class FakeCluster:
    """The head's store, and the names of what lives."""

    def __init__(self) -> None:
        self.state: PoolState | None = None
        self.load_errors: list[Exception] = []
        self.living: set[str] = set()
        self.immortal: set[str] = set()

    def load_state(self) -> PoolState | None:
        if self.load_errors:
            raise self.load_errors.pop()
        return self.state

    def save_state(self, state: PoolState) -> None:
        self.state = state

    def delete_state(self) -> None:
        self.state = None

    def living_replicas(self) -> set[str]:
        return set(self.living)

    def remove_replica(self, name: str) -> None:
        if name in self.immortal:
            raise RuntimeError("the head does not answer")
        self.living.discard(name)


class FakeDeployment:
    """Notes nothing, runs nothing; its removal waits for `released`, or fails."""

    lacks_room = False
    serves_current = True
    living_revisions = ()
    num_decisions = 0
    undecided = ""
    """Id of a model about which every decision fails."""
    released: asyncio.Event
    stop_error: Exception | None = None

    def __init__(self, model: WantedModel, *_: object) -> None:
        self.model = model
        self.model_id = model.model_id

    def start(self, adopted: object = ()) -> None: ...

    def update(self, model: WantedModel) -> None: ...

    def follow(self, scaler: object, now: float) -> None:
        self.num_decisions += 1
        if self.model_id == self.undecided:
            raise RuntimeError("unexpected")

    async def wait_until_settled(self, timeout_s: float) -> None: ...

    async def stop(self) -> None:
        await self.released.wait()
        if self.stop_error is not None:
            raise self.stop_error


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    for name in ("load_state", "save_state", "delete_state", "living_replicas", "remove_replica"):
        monkeypatch.setattr(manager_module, name, getattr(cluster, name))
    monkeypatch.setattr("workers.pool.back_off.FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(manager_module, "Deployment", FakeDeployment)
    monkeypatch.setattr(FakeDeployment, "released", asyncio.Event(), raising=False)
    monkeypatch.setattr(FakeDeployment, "stop_error", None)
    return cluster


async def test_a_head_that_is_away_for_a_while_does_not_end_the_recovery(cluster: FakeCluster) -> None:
    cluster.load_errors = [RuntimeError("the head restarts"), RuntimeError("the head restarts")]
    assert (await asyncio.wait_for(PoolManager().view(), 5)).models == ()


async def test_strays_are_removed_without_any_remembered_state_and_one_failure_keeps_no_other(
    cluster: FakeCluster,
) -> None:
    cluster.living = {"aviary:x:1", "aviary:x:2"}
    cluster.immortal = {"aviary:x:1"}
    await PoolManager().view()
    assert cluster.living == {"aviary:x:1"}


async def test_a_state_that_cannot_be_read_says_what_to_do_and_a_shutdown_works(cluster: FakeCluster) -> None:
    cluster.load_errors = [msgspec.ValidationError("expected str")]
    cluster.living = {"aviary:x:1"}
    manager = PoolManager()
    for _ in range(2):
        with pytest.raises(PoolError, match="run `aviary shutdown`"):
            await manager.view()
    assert cluster.living == {"aviary:x:1"}
    await manager.shutdown()
    assert cluster.living == set()


async def test_nothing_is_deployed_between_the_removal_and_the_end(cluster: FakeCluster) -> None:
    manager = PoolManager()
    await manager.add([ENTRY])
    ending = asyncio.create_task(manager.shutdown())
    await asyncio.sleep(0.01)
    adding = asyncio.create_task(manager.add([ENTRY.model_copy()], PoolOptions()))
    await asyncio.sleep(0.01)
    FakeDeployment.released.set()
    await ending
    with pytest.raises(PoolError, match="being shut down"):
        await adding
    assert cluster.state is None


async def test_a_removal_that_fails_is_forgotten_all_the_same(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeDeployment, "stop_error", RuntimeError("unexpected"))
    FakeDeployment.released.set()
    manager = PoolManager()
    await manager.add([ENTRY])
    await manager.remove(["a/b"])
    assert (await manager.add([ENTRY])).added == ("a/b",)


async def test_a_decision_that_fails_stops_neither_the_next_nor_those_about_other_models(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "DECISION_PERIOD_S", 0.001)
    monkeypatch.setattr(FakeDeployment, "undecided", "a/b")
    other = RegistryEntry.model_validate(
        {"model_config": {"model_id": "c/d", "initialization": {"initializer": {"type": "Echo"}}}}
    )
    manager = PoolManager()
    await manager.add([ENTRY, other])
    await asyncio.sleep(0.05)
    decided = [deployment.num_decisions for deployment in manager._deployments.values()]  # type: ignore[attr-defined]
    assert min(decided) > 2


@pytest.mark.parametrize("serves_current", [True, False])
async def test_sizes_change_in_replicas_that_serve_and_others_are_made_anew(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, serves_current: bool
) -> None:
    monkeypatch.setattr(FakeDeployment, "serves_current", serves_current)
    manager = PoolManager()
    await manager.add([ENTRY])
    before = cluster.state
    model = {**ENTRY.model_dump(by_alias=True)["model_config"], "generation": {"max_batch_size": 3}}
    larger = RegistryEntry.model_validate({"model_config": model})
    applied = await manager.add([larger])
    assert (applied.reconfigured, applied.replaced) == ((("a/b",), ()) if serves_current else ((), ("a/b",)))
    assert before is not None
    assert cluster.state is not None
    (old,), (new,) = before.models, cluster.state.models
    assert new.entry == larger
    assert (new.current.revision_id == old.current.revision_id) is serves_current
