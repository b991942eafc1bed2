"""Ray as a replica sees it: its placement group, its actor, and the calls to it.

Everything that talks to the cluster's head (names, placement groups, node tables) blocks the calling thread while the
head is away, so all of it runs on threads; only method calls on a living actor are awaited directly. Used by the
manager; the only file, with `store` and `client`, of the pool that imports Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import ray
from ray._private.state import available_resources_per_node  # Ray's public functions know the whole cluster only
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.util import get_placement_group, list_named_actors, placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from model_registry.contract import POOL_NAMESPACE
from model_registry.naming import slug_of
from model_registry.schema import RegistryEntry
from workers.errors import WorkerError, first_line
from workers.pool.placement import Node, PendingReason, Resources, explain_pending, placement_for
from workers.pool.process_environment import runtime_env_of
from workers.pool.replica import ReplicaFailedError, WorkerClient
from workers.rank import Rank
from workers.report import WorkerReport
from workers.worker import Worker

NAME_PREFIX: Final = "aviary"
RANK_PREFIX: Final = "rank-of-"
RETRY_PAUSE_S: Final = 0.5
LAUNCH_TIMEOUT_S: Final = 60.0
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def replica_name(entry: RegistryEntry, replica_id: str) -> str:
    """Name of a replica's actor and of its placement group: `aviary:<slug>:<replica id>`."""
    return f"{NAME_PREFIX}:{slug_of(entry.model_id)}:{replica_id}"


def living_replicas() -> set[str]:
    """Names of everything a replica may have left in the cluster. Blocks."""
    actors = {actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == POOL_NAMESPACE}
    groups = {group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"}
    return {name for name in actors | groups if name.startswith(f"{NAME_PREFIX}:")}


def living_nodes() -> list[Node]:
    """Every node of the cluster and all it has, used or not. Blocks."""
    return [Node(node["NodeName"], node["Resources"]) for node in ray.nodes() if node["Alive"]]


def free_resources() -> dict[str, Resources]:
    """What no placement group holds of each living node, by the node's id. Blocks."""
    free: dict[str, Resources] = available_resources_per_node()
    return free


def remove_replica(name: str) -> None:
    """Kill the actor and remove the placement group of this name, whichever exist, and with it its ranks. Blocks."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, POOL_NAMESPACE), no_restart=True)
    with contextlib.suppress(ValueError):
        remove_placement_group(get_placement_group(name))


class WorkerActor(Worker):
    """The worker inside a Ray actor: finds its node's address and gives its process a log."""

    def __init__(self, entry: RegistryEntry, replica_id: str, secret: str) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        super().__init__(entry, replica_id, secret, ray.util.get_node_ip_address())


class RankActor(Rank):
    """A rank beyond the first inside a Ray actor, likewise."""

    def __init__(self, entry: RegistryEntry, replica_id: str, secret: str, rank: int) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        super().__init__(entry, replica_id, secret, ray.util.get_node_ip_address(), rank)


class RayHost:
    """One replica's place in the cluster."""

    def __init__(self, entry: RegistryEntry, replica_id: str, *, secret: str) -> None:
        self._entry = entry
        self._replica_id = replica_id
        self._secret = secret
        self._name = replica_name(entry, replica_id)
        self._placement = placement_for(entry)
        self._launching: asyncio.Future[Any] | None = None
        self._group: PlacementGroup | None = None

    async def launch(self) -> WorkerClient:
        self._launching = asyncio.ensure_future(asyncio.to_thread(self._launch))
        # Shielded: a launch that was given up still ends, and `remove` waits for it before it cleans up.
        try:
            front, ranks = await asyncio.shield(self._launching)
        except (RayError, ValueError) as error:
            raise ReplicaFailedError(f"its actor cannot be created: {first_line(error)}") from error
        return RayGroupClient(front, ranks) if ranks else RayWorkerClient(front)

    async def why_pending(self) -> PendingReason | None:
        return await asyncio.to_thread(self._why_pending)

    async def reserved(self) -> tuple[tuple[str, Resources], ...]:
        return await asyncio.to_thread(self._reserved)

    async def remove(self) -> None:
        if self._launching is not None:
            await asyncio.wait({self._launching}, timeout=LAUNCH_TIMEOUT_S)
        await asyncio.to_thread(remove_replica, self._name)

    def _launch(self) -> tuple[Any, list[Any]]:
        """The front actor, and the ranks beyond the first."""
        try:
            front = ray.get_actor(self._name, POOL_NAMESPACE)
        except ValueError:
            return self._create()
        try:
            self._group = get_placement_group(self._name)
        except ValueError:
            self._group = None
        return front, [ray.get_actor(self._rank_name(rank), POOL_NAMESPACE) for rank in self._ranks]

    def _create(self) -> tuple[Any, list[Any]]:
        bundles = [dict(bundle) for bundle in self._placement.bundles]
        self._group = placement_group(bundles, strategy=self._placement.strategy, name=self._name, lifetime="detached")
        arguments = (self._entry, self._replica_id, self._secret)
        # The front last: an adopted replica is complete when its front exists.
        ranks = [
            ray.remote(RankActor).options(**self._options(self._rank_name(rank), rank)).remote(*arguments, rank)
            for rank in self._ranks
        ]
        return ray.remote(WorkerActor).options(**self._options(self._name, 0)).remote(*arguments), ranks

    @property
    def _ranks(self) -> range:
        return range(1, self._entry.scaling.num_workers)

    def _rank_name(self, rank: int) -> str:
        """Not a replica's name, so that nobody takes a rank for one."""
        return f"{RANK_PREFIX}{self._name}:{rank}"

    def _options(self, name: str, rank: int) -> dict[str, object]:
        return {
            "name": name,
            "namespace": POOL_NAMESPACE,
            "lifetime": "detached",
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": runtime_env_of(self._entry, is_front=rank == 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
            **_actor_resources(self._placement.bundles[rank]),
        }

    def _reserved(self) -> tuple[tuple[str, Resources], ...]:
        if self._group is None:
            return ()
        nodes: dict[int, str] = placement_group_table(self._group).get("bundles_to_node_id", {})
        return tuple((nodes[index], bundle) for index, bundle in enumerate(self._placement.bundles) if nodes.get(index))

    def _why_pending(self) -> PendingReason | None:
        if self._group is None or placement_group_table(self._group).get("state") == "CREATED":
            return None
        return explain_pending(self._placement, living_nodes())


class RayWorkerClient:
    """Calls a worker's methods through Ray."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> str:
        address: str = await _call(self._actor.start.remote)
        return address

    async def report(self, seen: int | None, timeout_s: float) -> WorkerReport:
        report: WorkerReport = await _call(self._actor.report.remote, seen, timeout_s)
        return report

    async def reconfigure(self, entry: RegistryEntry) -> None:
        await _call(self._actor.reconfigure.remote, entry)

    async def drain(self, timeout_s: float) -> bool:
        drained: bool = await _call(self._actor.drain.remote, timeout_s)
        return drained

    async def stop(self) -> None:
        await _call(self._actor.stop.remote)

    async def wait_until_stopped(self, timeout_s: float) -> bool:
        stopped: bool = await _call(self._actor.wait_until_stopped.remote, timeout_s)
        return stopped


class RayGroupClient(RayWorkerClient):
    """Calls the front worker of several ranks, and fails when any of the ranks does."""

    def __init__(self, front: Any, ranks: Sequence[Any]) -> None:
        super().__init__(front)
        self._front = front
        self._ranks = ranks

    async def start(self) -> str:
        leader = await _call(self._front.open_group.remote)
        async with _first_failure() as tasks:
            address = tasks.create_task(super().start())
            for rank in self._ranks:
                tasks.create_task(_call(rank.start.remote, leader))
        return address.result()

    async def report(self, seen: int | None, timeout_s: float) -> WorkerReport:
        async with _first_failure() as tasks:
            report = tasks.create_task(super().report(seen, timeout_s))
            for rank in self._ranks:
                tasks.create_task(_call(rank.report.remote))
        return report.result()

    async def wait_until_stopped(self, timeout_s: float) -> bool:
        async with _first_failure() as tasks:
            stopped = tasks.create_task(super().wait_until_stopped(timeout_s))
            for rank in self._ranks:
                tasks.create_task(_call(rank.wait_until_stopped.remote, timeout_s))
        return stopped.result()


@contextlib.asynccontextmanager
async def _first_failure() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except* ReplicaFailedError as group:
        raise group.exceptions[0] from None


async def _call(method: Callable[..., Any], *arguments: object) -> Any:
    """The method's result. All may be repeated, so a passing outage is waited out: the caller's deadline bounds it."""
    while True:
        try:
            return await method(*arguments)
        except ActorUnavailableError:
            await asyncio.sleep(RETRY_PAUSE_S)
        except RayError as error:
            raise ReplicaFailedError(_reason(error)) from error


def _reason(error: RayError) -> str:
    """Ray's paragraph about a failure as one line."""
    if isinstance(error, OutOfMemoryError):
        return "its process was killed: the node ran out of memory"
    if isinstance(error, RayTaskError):
        cause = error.cause
        return first_line(cause) if isinstance(cause, WorkerError) else f"{type(cause).__name__}: {first_line(cause)}"
    if isinstance(error, RuntimeEnvSetupError):
        return f"its runtime environment cannot be set up: {_last_line(error)}"
    if isinstance(error, RayActorError):
        return "its process died; its log on the node says more"
    return f"{type(error).__name__}: {first_line(error)}"


def _last_line(error: RayError) -> str:
    """Where Ray quotes what failed on the node, the cause comes last: pip's own error, or that of an exception."""
    return str(error).strip().splitlines()[-1].strip()


def _actor_resources(bundle: Resources) -> dict[str, object]:
    """A bundle as actor options: its actor takes all of it."""
    custom = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "memory": bundle.get("memory"),
        "resources": custom or None,
    }
