"""Ray as a replica sees it: its placement group, its actor, and the calls to it.

Everything that talks to the cluster's head (names, placement groups, node tables) blocks the calling thread while the
head is away, so all of it runs on threads; only method calls on a living actor are awaited directly. Used by the
manager; the only file, with `store` and `client`, of the pool that imports Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any, Final

import ray
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
from workers.errors import WorkerError
from workers.pool.placement import Node, Placement, Resources, explain_pending, placement_for
from workers.pool.replica import ReplicaFailedError, WorkerClient
from workers.report import WorkerReport
from workers.worker import Worker, first_line

NAME_PREFIX: Final = "aviary"
RETRY_PAUSE_S: Final = 0.5
LAUNCH_TIMEOUT_S: Final = 60.0
LLAMA_SPIN_COUNT: Final = "1000"
"""How long OpenMP's threads spin before they sleep. llama.cpp's meet hundreds of times per token; by OpenMP's own
default they stand still where other processes want the same cores."""
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def replica_name(entry: RegistryEntry, replica_id: str) -> str:
    """Name of a replica's actor and of its placement group: `aviary:<slug>:<replica id>`."""
    return f"{NAME_PREFIX}:{slug_of(entry.model_id)}:{replica_id}"


def living_replicas() -> set[str]:
    """Names of everything a replica may have left in the cluster. Blocks."""
    actors = {actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == POOL_NAMESPACE}
    groups = {group["name"] for group in placement_group_table().values() if group["state"] != "REMOVED"}
    return {name for name in actors | groups if name.startswith(f"{NAME_PREFIX}:")}


def remove_replica(name: str) -> None:
    """Kill the actor and remove the placement group of this name, whichever exist. Blocks."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name, POOL_NAMESPACE), no_restart=True)
    with contextlib.suppress(ValueError):
        remove_placement_group(get_placement_group(name))


class WorkerActor(Worker):
    """The worker inside a Ray actor: finds its node's address and gives its process a log."""

    def __init__(self, entry: RegistryEntry, replica_id: str, secret: str) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        super().__init__(entry, replica_id, secret, ray.util.get_node_ip_address())


class RayHost:
    """One replica's place in the cluster."""

    def __init__(self, entry: RegistryEntry, replica_id: str, secret: str) -> None:
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
            return RayWorkerClient(await asyncio.shield(self._launching))
        except (RayError, ValueError) as error:
            raise ReplicaFailedError(f"its actor cannot be created: {first_line(error)}") from error

    async def why_pending(self) -> str | None:
        return await asyncio.to_thread(self._why_pending)

    async def remove(self) -> None:
        if self._launching is not None:
            await asyncio.wait({self._launching}, timeout=LAUNCH_TIMEOUT_S)
        await asyncio.to_thread(remove_replica, self._name)

    def _launch(self) -> Any:
        try:
            actor = ray.get_actor(self._name, POOL_NAMESPACE)
        except ValueError:
            return self._create()
        try:
            self._group = get_placement_group(self._name)
        except ValueError:
            self._group = None
        return actor

    def _create(self) -> Any:
        bundles = [dict(bundle) for bundle in self._placement.bundles]
        self._group = placement_group(bundles, strategy=self._placement.strategy, name=self._name, lifetime="detached")
        options = {
            "name": self._name,
            "namespace": POOL_NAMESPACE,
            "lifetime": "detached",
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": _env_vars(self._entry)},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0),
            **_actor_resources(self._placement),
        }
        return ray.remote(WorkerActor).options(**options).remote(self._entry, self._replica_id, self._secret)

    def _why_pending(self) -> str | None:
        if self._group is None or placement_group_table(self._group).get("state") == "CREATED":
            return None
        nodes = [Node(node["NodeName"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        return explain_pending(self._placement, nodes)


class RayWorkerClient:
    """Calls a worker's methods through Ray. All of them may be repeated, so a passing outage is waited out."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def start(self) -> str:
        address: str = await self._call(self._actor.start.remote)
        return address

    async def report(self, seen: int | None, timeout_s: float) -> WorkerReport:
        report: WorkerReport = await self._call(self._actor.report.remote, seen, timeout_s)
        return report

    async def drain(self, timeout_s: float) -> bool:
        drained: bool = await self._call(self._actor.drain.remote, timeout_s)
        return drained

    async def stop(self) -> None:
        await self._call(self._actor.stop.remote)

    async def wait_until_stopped(self, timeout_s: float) -> bool:
        stopped: bool = await self._call(self._actor.wait_until_stopped.remote, timeout_s)
        return stopped

    async def _call(self, method: Callable[..., Any], *arguments: object) -> Any:
        """The method's result; the caller's deadline bounds the repetitions."""
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
        return f"its runtime environment cannot be set up: {first_line(error)}"
    if isinstance(error, RayActorError):
        return "its process died; its log on the node says more"
    return f"{type(error).__name__}: {first_line(error)}"


def _actor_resources(placement: Placement) -> dict[str, object]:
    """The first bundle as actor options: the front actor takes all of it."""
    bundle: Resources = placement.bundles[0]
    custom = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU", "memory")}
    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "memory": bundle.get("memory"),
        "resources": custom or None,
    }


def _env_vars(entry: RegistryEntry) -> dict[str, str]:
    """Environment of the process: as many compute threads as the registry gives the worker CPUs."""
    num_threads = max(1, math.ceil(entry.scaling.num_cpus_per_worker))
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(num_threads)}
    if entry.model.initialization.initializer.type == "LlamaCpp":
        variables["GOMP_SPINCOUNT"] = LLAMA_SPIN_COUNT
    return variables
