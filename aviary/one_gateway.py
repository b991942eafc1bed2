"""A gateway in this process, in front of a cluster's pool: alone on its address, or one of a supervisor's several.

The only place where Ray, the application and the command line meet for `aviary gateway`; `gateway_command` and the
supervisor start it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence

from fastapi import FastAPI

from aviary.cluster_commands import joined
from aviary.ray_cluster import RayCluster
from aviary.registry_follower import RegistryFollower
from aviary.serve import pool_options
from aviary.settings import DeploySettings, load_gateway_settings
from aviary.supervised import end_with, signs_of_life
from gateway.app import create_app
from gateway.channel import GrpcChannel
from gateway.listener import inherited
from gateway.pool_client import RayPoolClient
from gateway.routes.admin import Reload
from gateway.server import serve, serve_shared
from gateway.settings import GatewaySettings
from model_registry.schema import RegistryEntry
from workers.pool.client import PoolClient
from workers.pool.state import Applied


async def serve_alone(settings: GatewaySettings, *, on_started: Callable[[str], None]) -> int:
    """Until a signal; the exit status. Raises `BindError`."""
    deploy_settings = DeploySettings.load()
    async with joined(deploy_settings, ends_itself=True) as cluster:
        app = _app(settings, deploy_settings, cluster)
        return await serve(app, settings, on_started=on_started, over=cluster.replaced)


async def run_supervised(arguments: argparse.Namespace) -> int:
    """The command of which a supervisor runs several; the exit status."""
    end_with(arguments.supervisor_pid)
    settings, deploy_settings = load_gateway_settings(), DeploySettings.load()
    async with signs_of_life(arguments.life_fd) as begin, joined(deploy_settings, ends_itself=True) as cluster:
        await _hear_of_pool(cluster)
        own, *others = map(inherited, arguments.listener_fds)
        app = _app(settings, deploy_settings, cluster)
        return await serve_shared(app, settings, own, others, on_started=begin, over=cluster.replaced)


async def _hear_of_pool(cluster: RayCluster) -> None:
    """Until it is known what is deployed, however long the head takes to say so, or until the cluster is replaced."""
    waits = (asyncio.create_task(_first_view(cluster)), asyncio.create_task(cluster.replaced.wait()))
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for one in pending:
        one.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    await asyncio.gather(*done)


async def _first_view(cluster: RayCluster) -> None:
    """Of the pool, if the cluster has one.

    A gateway that knows of no model calls every model unknown; alone it may, but not beside others that serve them.
    """
    if await PoolClient.find() is not None:
        pool = RayPoolClient(cluster.address)
        await anext(pool.views())
        await pool.close()


def _app(settings: GatewaySettings, deploy_settings: DeploySettings, cluster: RayCluster) -> FastAPI:
    reload = _reload_of(deploy_settings) if deploy_settings.registry is not None else None
    return create_app(settings, RayPoolClient(cluster.address), GrpcChannel, reload=reload)


def _reload_of(settings: DeploySettings) -> Reload:
    """What `POST /admin/reload` does in a gateway that was told where the registry is."""

    async def deploy(entries: Sequence[RegistryEntry]) -> Applied:
        pool = await PoolClient.find_or_start()
        return await pool.apply(entries, pool_options(settings))

    return RegistryFollower(settings, deploy).reload_for_gateway
