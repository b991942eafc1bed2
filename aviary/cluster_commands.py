"""The commands for a cluster that runs already: `deploy`, `status`, `shutdown`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from aviary.errors import ClusterReplacedError, CommandError
from aviary.progress import Progress
from aviary.ray_cluster import RayCluster
from aviary.registry_follower import RegistryFollower, lines_about
from aviary.serve import REMOVAL_GRACE_S, check_supported, pool_options
from aviary.settings import DeploySettings
from aviary.status_table import table_of
from workers.pool.client import PoolClient

SETTLE_GRACE_S: Final = 60.0
"""How much longer than the load timeout `deploy` waits for news about each model."""


async def deploy(arguments: argparse.Namespace) -> int:
    """Make the cluster's pool what the registry says, and wait for the first attempt at each model."""
    settings = DeploySettings.load(models=arguments.models, registry=arguments.registry)
    entries = settings.select(settings.read_registry())
    check_supported(entries)
    async with joined(settings):
        pool = await PoolClient.find_or_start()
        follower = RegistryFollower(settings, lambda wanted: pool.apply(wanted, pool_options(settings)))
        print("\n".join(lines_about(await follower.reload()) or ["nothing has changed"]), flush=True)
        model_ids = [entry.model_id for entry in entries]
        if arguments.watch:
            print(f"following {settings.registry}; Ctrl-C leaves the pool as it is", flush=True)
            await follower.watch()
        if arguments.no_wait:
            print("`aviary status` shows how they come up")
            return 0
        return await _wait(pool, model_ids, settings.load_timeout_s + SETTLE_GRACE_S)


async def status(arguments: argparse.Namespace) -> int:
    """A table of what is deployed and how it is."""
    async with joined(DeploySettings.load()):
        pool = await PoolClient.find()
        if pool is None:
            raise CommandError("nothing is deployed on this cluster; `aviary deploy` does that")
        print("\n".join(table_of(await pool.view())))
    return 0


async def shutdown(arguments: argparse.Namespace) -> int:
    """Remove every model and the pool's manager; Ray and the gateways go on."""
    settings = DeploySettings.load()
    async with joined(settings):
        pool = await PoolClient.find()
        if pool is None:
            print("nothing is deployed on this cluster")
            return 0
        await pool.shutdown(settings.drain_timeout_s + REMOVAL_GRACE_S)
        print("the pool is gone")
    return 0


@contextlib.asynccontextmanager
async def joined(settings: DeploySettings, *, ends_itself: bool = False) -> AsyncIterator[RayCluster]:
    """The cluster of the settings, or this machine's, left again at the end.

    When another cluster has taken its place, what runs inside is cancelled, unless it `ends_itself`: by the cluster's
    event `replaced`. Raises `ClusterReplacedError` then: whoever restarts this process has it join the other one.
    """
    cluster = await RayCluster.join(settings.ray_address or "auto")
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  only ever called in a task

    async def watch() -> None:
        await cluster.watch()
        if not ends_itself:
            task.cancel()

    watching = asyncio.create_task(watch(), name="watch-cluster")
    try:
        yield cluster
    except asyncio.CancelledError:
        if ends_itself or not cluster.replaced.is_set():
            raise
        task.uncancel()
    finally:
        watching.cancel()
        await cluster.close()
    if cluster.replaced.is_set():
        raise ClusterReplacedError(cluster.address)


async def _wait(pool: PoolClient, model_ids: Sequence[str], timeout_s: float) -> int:
    """Print what becomes of the models until the first attempt at each has ended. Raises `CommandError`."""
    progress = Progress(model_ids, time.monotonic)
    try:
        async with asyncio.timeout(timeout_s):
            async for view in pool.views():
                for line in progress.update(view):
                    print(line, flush=True)
                if progress.is_settled:
                    break
    except TimeoutError:
        raise CommandError(f"not all models were loaded within {timeout_s:g} s; `aviary status` shows them") from None
    failed = [f"  - {outcome.model_id}: {outcome.reason}" for outcome in progress.outcomes if not outcome.serves]
    if failed:
        raise CommandError("\n".join(["not served as wanted; `aviary status` shows what becomes of it:", *failed]))
    return 0
