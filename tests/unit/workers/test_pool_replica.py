"""A replica's life, and a deployment's answer to its death, over a host without Ray."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_registry.contract import ReplicaState, WorkerStatus
from model_registry.schema import RegistryEntry
from model_registry.tool_formats import AnswerFormat, ToolFormat
from workers.pool import replica as replica_module
from workers.pool.deployment import LEAST_STAY_S, Deployment
from workers.pool.placement import PendingReason, Resources
from workers.pool.replica import TRANSITIONS, Replica, ReplicaFailedError
from workers.pool.state import PoolOptions, Revision, WantedModel
from workers.report import WorkerPhase, WorkerReport

BUSY = PendingReason("pending: needs {CPU: 1}; fits node a, busy now", is_lasting=False)
NO_G5 = PendingReason("pending: no node offers g5", is_lasting=True)


class FakeWorker:
    """A worker whose life the test decides."""

    def __init__(self) -> None:
        self.alive = asyncio.Event()
        self.loaded = asyncio.Event()
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.load_error: str | None = None
        self.calls: list[str] = []
        self.configured: list[RegistryEntry] = []
        self.drain_timeout_s = 0.0
        self.status = WorkerStatus()
        self.phase = WorkerPhase.LOADING
        self.fetched_bytes = 0
        self.note = "runs eagerly"
        self.is_resizing = False
        self.refusal = ""
        self.max_model_len = 128
        self.answer_format = AnswerFormat(ToolFormat.LLAMA)

    async def start(self) -> str:
        await self.loaded.wait()
        if self.load_error:
            raise ReplicaFailedError(self.load_error)
        return "127.0.0.1:1"

    async def report(self, seen: int | None, timeout_s: float) -> WorkerReport:
        await self.alive.wait()
        if seen is not None:
            await asyncio.sleep(timeout_s)
        detail = self.note if self.loaded.is_set() else "fetching"
        return WorkerReport(
            version=1,
            phase=self.phase,
            detail=detail,
            pid=42,
            max_model_len=self.max_model_len,
            answer_format=self.answer_format,
            is_resizing=self.is_resizing,
            refusal=self.refusal,
            fetched_bytes=self.fetched_bytes,
            status=self.status,
        )

    async def reconfigure(self, entry: RegistryEntry) -> None:
        self.configured.append(entry)

    async def drain(self, timeout_s: float) -> bool:
        self.calls.append("drain")
        self.drain_timeout_s = timeout_s
        return True

    async def stop(self) -> None:
        self.calls.append("stop")

    async def wait_until_stopped(self, timeout_s: float) -> bool:
        await asyncio.shield(self.died)
        raise ReplicaFailedError("its process died")


class FakeHost:
    """A place in no cluster."""

    def __init__(self) -> None:
        self.worker = FakeWorker()
        self.pending: PendingReason | None = None
        self.removed = 0

    async def launch(self) -> FakeWorker:
        return self.worker

    async def why_pending(self) -> PendingReason | None:
        return self.pending

    async def reserved(self) -> tuple[tuple[str, Resources], ...]:
        return (("node", {"CPU": 1}),)

    async def remove(self) -> None:
        self.removed += 1


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PLACEMENT_NEWS_S", "PLACEMENT_NEWS_S", "PROGRESS_PAUSE_S", "HEALTH_PERIOD_S"):
        monkeypatch.setattr(replica_module, name, 0.01)
    monkeypatch.setattr(replica_module, "CALL_TIMEOUT_S", 0.1)
    monkeypatch.setattr("workers.pool.back_off.FIRST_DELAY_S", 0.05)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def state_of(replica: Replica) -> ReplicaState:
    return replica.state


@asynccontextmanager
async def running(
    host: FakeHost, load_timeout_s: float = 10, place_timeout_s: float | None = None
) -> AsyncIterator[tuple[Replica, asyncio.Task[None]]]:
    made_from = entry(pg_timeout_s=place_timeout_s)
    replica = Replica("r1", made_from, host, load_timeout_s=load_timeout_s, on_change=lambda: None)
    task = asyncio.create_task(replica.run())
    yield replica, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_replica_goes_from_pending_over_starting_to_ready_and_keeps_its_workers_note() -> None:
    host = FakeHost()
    async with running(host) as (replica, _):
        await until(lambda: replica.detail == "starting its process")
        assert state_of(replica) is ReplicaState.PENDING
        host.worker.fetched_bytes = 7
        host.worker.alive.set()
        await until(lambda: replica.detail == "fetching")
        assert state_of(replica) is ReplicaState.STARTING
        assert replica.view.fetched_bytes == 7
        host.worker.fetched_bytes = 8
        host.worker.loaded.set()
        await until(lambda: state_of(replica) is ReplicaState.READY)
        assert replica.view.fetched_bytes == 8
        assert replica.view.address == "127.0.0.1:1"
        assert (replica.max_model_len, replica.pid, replica.view.detail) == (128, 42, "runs eagerly")


async def test_a_replica_that_serves_shows_its_workers_news_and_its_sizes_of_today() -> None:
    host = FakeHost()
    bring_up(host)
    async with running(host) as (replica, _):
        await until(lambda: state_of(replica) is ReplicaState.READY)
        host.worker.note, host.worker.max_model_len = "serves with its earlier sizes: no room", 64
        await until(lambda: (replica.max_model_len, replica.view.detail) == (64, host.worker.note))


async def test_a_replica_without_a_place_says_why_for_as_long_as_it_takes() -> None:
    host = FakeHost()
    host.pending = NO_G5
    async with running(host, load_timeout_s=0.05) as (replica, task):
        await until(lambda: replica.detail == "pending: no node offers g5")
        await asyncio.sleep(0.1)
        assert not task.done()
        assert replica.settled.is_set()


async def test_a_place_that_does_not_come_in_time_ends_it_with_what_it_waited_for() -> None:
    host = FakeHost()
    host.pending = NO_G5
    async with running(host, place_timeout_s=0.05) as (replica, task):
        with pytest.raises(ReplicaFailedError, match=r"within 0\.05 s .*pg_timeout_s.*: pending: no node offers"):
            await asyncio.wait_for(task, 2)
        assert state_of(replica) is ReplicaState.FAILED


async def test_the_timeout_of_the_place_does_not_count_the_start_of_the_process() -> None:
    host = FakeHost()
    async with running(host, place_timeout_s=0.05) as (replica, task):
        await until(lambda: replica.detail == "starting its process")
        await asyncio.sleep(0.1)
        assert not task.done()


async def test_a_failed_load_ends_it_with_the_reason() -> None:
    host = FakeHost()
    host.worker.alive.set()
    host.worker.load_error = "weights not found"
    async with running(host) as (replica, task):
        host.worker.loaded.set()
        with pytest.raises(ReplicaFailedError, match="weights not found"):
            await task
        assert (replica.state, replica.detail) == (ReplicaState.FAILED, "weights not found")
        assert replica.served_s is None


async def test_a_load_that_takes_too_long_ends_it_and_names_the_setting() -> None:
    host = FakeHost()
    host.worker.alive.set()
    async with running(host, load_timeout_s=0.05) as (replica, task):
        with pytest.raises(ReplicaFailedError, match="AVIARY_LOAD_TIMEOUT_S"):
            await task
        assert state_of(replica) is ReplicaState.FAILED


async def serving(host: FakeHost, replica: Replica) -> None:
    host.worker.phase = WorkerPhase.SERVING
    host.worker.alive.set()
    host.worker.loaded.set()
    await until(lambda: state_of(replica) is ReplicaState.READY)


async def test_a_dying_process_is_noticed_and_its_address_withdrawn() -> None:
    host = FakeHost()
    async with running(host) as (replica, task):
        await serving(host, replica)
        host.worker.died.set_result(None)
        with pytest.raises(ReplicaFailedError, match="died"):
            await task
        assert replica.view.address is None
        assert replica.served_s is not None


async def test_a_process_that_stops_answering_is_given_up() -> None:
    host = FakeHost()
    async with running(host) as (replica, task):
        await serving(host, replica)
        host.worker.alive.clear()
        with pytest.raises(ReplicaFailedError, match="does not answer"):
            await asyncio.wait_for(task, 2)


async def test_an_engine_that_makes_no_step_while_requests_wait_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "STALL_S", 0.05)
    host = FakeHost()
    async with running(host) as (replica, task):
        await serving(host, replica)
        await asyncio.sleep(0.1)
        assert not task.done(), "an idle engine makes no steps and is well"
        host.worker.status = WorkerStatus(num_waiting=1)
        with pytest.raises(ReplicaFailedError, match="made no step"):
            await asyncio.wait_for(task, 2)


async def test_a_retired_replica_drains_and_keeps_its_address_until_then() -> None:
    host = FakeHost()
    async with running(host) as (replica, task):
        await serving(host, replica)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await replica.retire(timeout_s=1)
        assert host.worker.calls == ["drain", "stop"]
        assert (replica.state, replica.view.address) == (ReplicaState.DRAINING, "127.0.0.1:1")


def test_the_documents_table_of_states_is_the_codes() -> None:
    page = (Path(__file__).parents[3] / "docs" / "pool.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    assert {(ReplicaState(state), transition): ReplicaState(after) for state, transition, after in rows} == TRANSITIONS


EVENTS = ("placed", "loaded", "load fails", "dies", "hangs", "pending", "retire")


@settings(max_examples=settings().max_examples // 3)
@given(events=st.lists(st.sampled_from(EVENTS), max_size=6))
def test_whatever_happens_a_replica_only_moves_as_the_table_says(events: list[str]) -> None:
    """And it serves only with an address, fails only with a reason, and comes back from neither failed nor draining."""
    asyncio.run(_live_through(events))


async def _live_through(events: list[str]) -> None:
    host, seen = FakeHost(), [ReplicaState.PENDING]
    replica = Replica("r1", entry(), host, load_timeout_s=10, on_change=lambda: seen.append(replica.state))
    task = asyncio.create_task(replica.run())
    for event in events:
        _inflict(event, host)
        await asyncio.sleep(0.015)
        if event == "retire":
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await replica.retire(0.1)
        assert (replica.address is not None) >= (replica.state is ReplicaState.READY)
        assert replica.detail or replica.state is ReplicaState.READY
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    moves = [(old, new) for old, new in pairwise(seen) if old is not new]
    assert set(moves) <= {(old, new) for (old, _), new in TRANSITIONS.items()}


def _inflict(event: str, host: FakeHost) -> None:
    worker = host.worker
    match event:
        case "placed":
            worker.alive.set()
        case "loaded":
            worker.phase = WorkerPhase.SERVING
            worker.loaded.set()
        case "load fails":
            worker.load_error = worker.load_error or "no such file"
            worker.loaded.set()
        case "dies" if not worker.died.done():
            worker.died.set_result(None)
        case "hangs":
            worker.alive.clear()
        case "pending":
            host.pending = BUSY


def test_nothing_leaves_draining_or_failed() -> None:
    assert {state for state, _ in TRANSITIONS} == {ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY}


def deployment_of(num_replicas: int, hosts: list[FakeHost], **scaling: float) -> Deployment:
    def make_host(_entry: RegistryEntry, _replica_id: str) -> FakeHost:
        hosts.append(FakeHost())
        hosts[-1].pending = NO_G5 if scaling else None
        return hosts[-1]

    return Deployment(
        wanted(entry(num_replicas, **scaling)), lambda: PoolOptions(drain_timeout_s=1), make_host, lambda: None
    )


def entry(num_replicas: int = 1, **scaling: float | None) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}},
            "deployment_config": {"autoscaling_config": {"min_replicas": num_replicas, "max_replicas": num_replicas}},
            "scaling_config": scaling,
        }
    )


def wanted(*entries: RegistryEntry) -> WantedModel:
    """Each entry a revision of its own: d1, d2 …"""
    revisions = tuple(Revision(revision_id=f"d{number}", entry=one) for number, one in enumerate(entries, 1))
    return WantedModel(revisions=revisions, created=5)


def bring_up(host: FakeHost) -> None:
    host.worker.alive.set()
    host.worker.loaded.set()


async def test_a_dead_replica_is_replaced_at_once_by_a_new_one() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(2, hosts)
    deployment.start()
    for host in hosts:
        bring_up(host)
    await until(lambda: all(replica.state is ReplicaState.READY for replica in deployment.view.replicas))
    before = deployment.view.replicas
    hosts[0].worker.died.set_result(None)
    await until(lambda: len(hosts) == 3)
    assert hosts[0].removed == 1
    assert deployment.view.replicas[0].replica_id != before[0].replica_id
    assert deployment.view.replicas[1] == before[1]
    assert "the last ended: its process died" in deployment.view.replicas[0].detail
    await deployment.stop()


async def test_a_failed_load_shows_its_reason_and_is_tried_again_later() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(1, hosts)
    deployment.start()
    hosts[0].worker.load_error = "no such file"
    bring_up(hosts[0])
    await until(lambda: "next attempt in" in deployment.view.replicas[0].detail)
    (replica,) = deployment.view.replicas
    assert replica.state is ReplicaState.FAILED
    assert replica.detail == "no such file; next attempt in 0.05 s"
    assert hosts[0].removed == 1
    await until(lambda: len(hosts) == 2)
    await deployment.stop()


async def test_a_replica_without_a_place_is_tried_again_after_pg_timeout_s() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(1, hosts, pg_timeout_s=0.05)
    deployment.start()
    await until(lambda: "next attempt in" in deployment.view.replicas[0].detail)
    assert "no node offers g5; next attempt in 0.05 s" in deployment.view.replicas[0].detail
    assert hosts[0].removed == 1
    await until(lambda: len(hosts) == 2)
    await deployment.stop()


async def test_living_replicas_are_adopted_by_their_ids_and_the_rest_made_new() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(2, hosts)
    deployment.start(adopted=["d1-old"])
    ids = [replica.replica_id for replica in deployment.view.replicas]
    assert ids[0] == "d1-old"
    assert ids[1].startswith("d1-")
    await deployment.stop()


async def test_a_stopped_deployment_has_removed_every_replica() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(2, hosts)
    deployment.start()
    bring_up(hosts[0])
    await until(lambda: deployment.view.replicas[0].state is ReplicaState.READY)
    await deployment.stop()
    assert [host.removed for host in hosts] == [1, 1]
    assert hosts[0].worker.calls == ["drain", "stop"]
    assert deployment.view.replicas == ()


async def test_a_report_that_comes_too_late_costs_no_later_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "CALL_TIMEOUT_S", 0.02)
    host = FakeHost()
    host.worker.alive.set()
    async with running(host) as (replica, _):
        await until(lambda: state_of(replica) is ReplicaState.STARTING)
        host.worker.alive.clear()
        replica.detail = "stale"
        await asyncio.sleep(0.1)
        host.worker.alive.set()
        monkeypatch.setattr(replica_module, "PROGRESS_WAIT_S", 0.0)
        await until(lambda: replica.detail == "fetching")


async def test_a_later_drain_timeout_holds_for_a_living_deployment() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(1, hosts)
    deployment._options = lambda: PoolOptions(drain_timeout_s=7)
    deployment.start()
    bring_up(hosts[0])
    await until(lambda: deployment.view.replicas[0].state is ReplicaState.READY)
    await deployment.stop()
    assert hosts[0].worker.drain_timeout_s == 7


async def ready(deployment: Deployment, num_replicas: int) -> None:
    await until(lambda: sum(one.state is ReplicaState.READY for one in deployment.view.replicas) == num_replicas)


def may_wait(deployment: Deployment) -> bool:
    return deployment.view.may_wait


def ids(deployment: Deployment) -> list[str]:
    return [replica.replica_id for replica in deployment.view.replicas]


@asynccontextmanager
async def deployed(num_replicas: int) -> AsyncIterator[tuple[Deployment, list[FakeHost]]]:
    """A deployment all of whose replicas serve."""
    hosts: list[FakeHost] = []
    deployment = deployment_of(num_replicas, hosts)
    deployment.start()
    for host in hosts:
        bring_up(host)
    await ready(deployment, num_replicas)
    yield deployment, hosts
    await deployment.stop()


async def test_more_replicas_are_added_and_the_idle_ones_drained_when_fewer_are_wanted() -> None:
    async with deployed(1) as (deployment, hosts):
        deployment.scale_to(2)
        assert len(hosts) == 2
        bring_up(hosts[1])
        await ready(deployment, 2)
        before = ids(deployment)
        hosts[1].worker.status = WorkerStatus(num_running=1)
        await until(lambda: deployment._slots[1].replica.num_ongoing == 1)
        deployment.scale_to(1)
        await until(lambda: ids(deployment) == [before[1]])
        assert hosts[0].worker.calls == ["drain", "stop"]
        assert hosts[0].removed == 1
        assert deployment.view.num_wanted == 1


async def test_changed_settings_reach_every_living_worker_and_those_that_come_later() -> None:
    async with deployed(1) as (deployment, hosts):
        changed = entry(1, pg_timeout_s=7)
        deployment.update(WantedModel(revisions=(Revision(revision_id="d1", entry=changed),), created=5))
        await until(lambda: hosts[0].worker.configured[-1] is changed)
        assert len(hosts) == 1
        assert deployment.view.entry is changed
        deployment.scale_to(2)
        bring_up(hosts[1])
        await ready(deployment, 2)
        assert hosts[1].worker.configured == [changed]


async def test_how_a_models_answers_are_to_be_read_is_known_also_while_it_sleeps() -> None:
    async with deployed(1) as (deployment, hosts):
        assert deployment.view.answer_format == AnswerFormat(ToolFormat.LLAMA)
        deployment.update(wanted(entry(1), entry(1, num_cpus_per_worker=2)))
        hosts[1].worker.answer_format = AnswerFormat(ToolFormat.HERMES)
        bring_up(hosts[1])
        await until(lambda: [one.split("-")[0] for one in ids(deployment)] == ["d2"])
        deployment.scale_to(0)
        await until(lambda: not ids(deployment))
        assert deployment.view.answer_format == AnswerFormat(ToolFormat.HERMES)


async def test_a_new_revision_serves_before_the_old_one_is_drained() -> None:
    async with deployed(1) as (deployment, hosts):
        old, changed = entry(1), entry(1, num_cpus_per_worker=2)
        deployment.update(wanted(old, changed))
        assert [one.split("-")[0] for one in ids(deployment)] == ["d1", "d2"]
        assert (deployment.view.entry, deployment.view.num_outdated) == (old, 1)
        assert hosts[0].worker.calls == []
        bring_up(hosts[1])
        await until(lambda: [one.split("-")[0] for one in ids(deployment)] == ["d2"])
        assert hosts[0].worker.calls == ["drain", "stop"]
        assert (deployment.view.entry, deployment.view.num_outdated) == (changed, 0)
        assert [one.revision_id for one in deployment.living_revisions] == ["d2"]


async def test_without_room_for_both_the_old_replica_goes_and_requests_may_wait_for_the_new_one() -> None:
    async with deployed(1) as (deployment, hosts):
        assert not may_wait(deployment)
        deployment.update(wanted(entry(1), entry(1, num_cpus_per_worker=2)))
        hosts[1].pending = BUSY
        await until(lambda: "drain" in hosts[0].worker.calls)
        await until(lambda: len(ids(deployment)) == 1)
        assert may_wait(deployment)
        hosts[1].pending = None
        bring_up(hosts[1])
        await ready(deployment, 1)
        assert not may_wait(deployment)


async def test_a_new_revision_that_fails_leaves_the_old_one_serving_and_says_why() -> None:
    async with deployed(1) as (deployment, hosts):
        deployment.update(wanted(entry(1), entry(1, num_cpus_per_worker=2)))
        hosts[1].worker.load_error = "no such file"
        bring_up(hosts[1])
        await until(lambda: "no such file" in deployment.view.replicas[1].detail)
        assert deployment.view.replicas[0].state is ReplicaState.READY
        assert hosts[0].worker.calls == []
        deployment.update(wanted(entry(1), entry(1, num_cpus_per_worker=2), entry(1, num_cpus_per_worker=3)))
        await until(lambda: [one.split("-")[0] for one in ids(deployment)] == ["d1", "d3"])


async def test_an_evicted_replica_is_drained_and_no_other_takes_its_place() -> None:
    async with deployed(2) as (deployment, hosts):
        first = ids(deployment)[0]
        deployment.evict(first)
        await until(lambda: first not in ids(deployment))
        assert hosts[0].worker.calls == ["drain", "stop"]
        assert (len(hosts), deployment.view.num_wanted) == (2, 1)


def sleeping_entry(**autoscaling: int) -> RegistryEntry:
    made = entry(1)
    section = made.deployment.autoscaling_config.model_copy(update={"min_replicas": 0, **autoscaling})
    return made.model_copy(update={"deployment": made.deployment.model_copy(update={"autoscaling_config": section})})


async def test_only_replicas_beyond_the_least_may_be_asked_to_go_and_of_the_busy_only_those_that_stayed() -> None:
    async with deployed(2) as (deployment, hosts):
        assert await deployment.residents(busy_too=True) == []
        deployment.update(wanted(sleeping_entry(max_replicas=2)))
        first, second = (slot.replica for slot in deployment._slots)
        hosts[1].worker.status = WorkerStatus(num_running=1)
        await until(lambda: second.num_ongoing == 1)
        assert [one.replica_id for one in await deployment.residents(busy_too=False)] == [first.replica_id]
        assert [one.replica_id for one in await deployment.residents(busy_too=True)] == [first.replica_id]
        second._ready_at = (second._ready_at or 0.0) - LEAST_STAY_S
        assert len(await deployment.residents(busy_too=True)) == 2
        assert (await deployment.residents(busy_too=True))[0].reserved == (("node", {"CPU": 1}),)


async def test_requests_may_wait_for_a_model_that_sleeps_until_its_load_fails_or_no_node_can_hold_it() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(1, hosts)
    deployment.model = wanted(sleeping_entry())
    deployment.target = 0
    deployment.start()
    assert may_wait(deployment)
    assert deployment.view.replicas == ()
    deployment.scale_to(1)
    hosts[0].pending = BUSY
    await until(lambda: deployment.lacks_room)
    assert may_wait(deployment)
    hosts[0].pending = NO_G5
    await until(lambda: not deployment.lacks_room)
    assert not may_wait(deployment), "nothing on these nodes will ever serve it"
    hosts[0].pending = None
    hosts[0].worker.load_error = "no such file"
    bring_up(hosts[0])
    await until(lambda: "next attempt in" in deployment.view.replicas[0].detail)
    assert not may_wait(deployment)
    await deployment.stop()


async def test_replicas_of_an_older_revision_are_adopted_and_replaced() -> None:
    hosts: list[FakeHost] = []
    deployment = deployment_of(1, hosts)
    deployment.model = wanted(entry(1), entry(1, num_cpus_per_worker=2))
    deployment.start(adopted=["d1-old"])
    hosts[0].worker.phase = WorkerPhase.SERVING
    bring_up(hosts[0])
    await ready(deployment, 1)
    assert [one.split("-")[0] for one in ids(deployment)] == ["d1", "d2"]
    bring_up(hosts[1])
    await until(lambda: [one.split("-")[0] for one in ids(deployment)] == ["d2"])
    await deployment.stop()


async def test_a_replica_is_outdated_until_it_has_taken_other_sizes_and_shows_why_it_does_not() -> None:
    async with deployed(1) as (deployment, hosts):
        assert deployment.view.num_outdated == 0
        worker = hosts[0].worker
        worker.is_resizing = True
        deployment.update(WantedModel(revisions=(Revision(revision_id="d1", entry=entry(1)),), created=5))
        assert deployment.view.num_outdated == 1
        await until(lambda: len(worker.configured) == 2)
        await asyncio.sleep(0.05)
        assert deployment.view.num_outdated == 1
        worker.is_resizing, worker.refusal = False, "serves with its earlier sizes: no room"
        await until(lambda: deployment.view.replicas[0].refusal == worker.refusal)
        assert deployment.view.num_outdated == 1
        worker.refusal = ""
        await until(lambda: deployment.view.num_outdated == 0)


async def test_a_changed_file_ends_the_wait_of_a_replica_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.pool.back_off.FIRST_DELAY_S", 60.0)
    async with deployed(2) as (deployment, hosts):
        served, failing = hosts
        failing.worker.died.set_result(None)
        await until(lambda: len(hosts) == 3)
        hosts[2].worker.load_error = "no room for the KV cache"
        bring_up(hosts[2])
        await until(lambda: any("next attempt in 60 s" in one.detail for one in deployment.view.replicas))
        smaller = WantedModel(revisions=(Revision(revision_id="d1", entry=entry(2)),), created=5)
        deployment.update(smaller)
        assert len(hosts) == 4
        bring_up(hosts[3])
        await ready(deployment, 2)
        assert served.worker.calls == []
