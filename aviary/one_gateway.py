"""A gateway in this process, in front of a cluster's pool: alone on its address, or one of a supervisor's several.

The only place where Ray, the application and the command line meet for `aviary gateway`; `gateway_command` and the
supervisor start it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fastapi import FastAPI

from aviary.cluster_commands import joined
from aviary.ray_cluster import RayCluster
from aviary.settings import DeploySettings, load_gateway_settings
from aviary.supervised import end_with, signs_of_life
from gateway.app import create_app
from gateway.channel import GrpcChannel
from gateway.listener import bind, inherited
from gateway.pool_client import RayPoolClient
from gateway.server import serve, serve_shared
from gateway.settings import GatewaySettings


async def serve_alone(settings: GatewaySettings, *, on_started: Callable[[str], None]) -> int:
    """Until a signal; the exit status. Raises `BindError`."""
    bind(settings).close()
    async with joined(DeploySettings.load()) as cluster:
        return await serve(_app(settings, cluster), settings, on_started=on_started)


async def run_supervised(arguments: argparse.Namespace) -> int:
    """The command of which a supervisor runs several; the exit status."""
    end_with(arguments.supervisor_pid)
    settings = load_gateway_settings()
    async with signs_of_life(arguments.life_fd) as begin, joined(DeploySettings.load()) as cluster:
        own, *others = map(inherited, arguments.listener_fds)
        return await serve_shared(_app(settings, cluster), settings, own, others, on_started=begin)


def _app(settings: GatewaySettings, cluster: RayCluster) -> FastAPI:
    return create_app(settings, RayPoolClient(cluster.address), GrpcChannel)
