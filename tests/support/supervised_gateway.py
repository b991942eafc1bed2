"""One of a supervisor's gateway processes, with everything but Ray: `python -m tests.support.supervised_gateway`.

In front of the worker at TEST_WORKER, which takes TEST_ONGOING requests at once; without it, of one that talks in this
process. A file in TEST_SERVING, with its process id as its name, says that it serves. The batches of a process that was
killed are taken over after TEST_LEASE_S.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from fastapi import FastAPI

from aviary.settings import load_gateway_settings
from aviary.supervised import end_with, signs_of_life
from gateway import batch_runner
from gateway.app import create_app
from gateway.channel import GrpcChannel
from gateway.listener import inherited
from gateway.server import serve_shared
from gateway.settings import GatewaySettings
from model_registry.contract import ReplicaState, ReplicaView
from tests.support.scripted_pool import StaticPool, TalkingWorker, connect_to, entry, model_view, pool_view, replica


def application(settings: GatewaySettings) -> FastAPI:
    address = os.environ.get("TEST_WORKER")
    if address is None:
        worker = TalkingWorker(("x",) * 80, step_s=0.05)
        model = model_view(replica("a"), of=entry(ongoing=64))
        return create_app(settings, StaticPool(pool_view(model)), connect_to({"a": worker}))
    live = ReplicaView(replica_id="live", state=ReplicaState.READY, address=address)
    ongoing = int(os.environ["TEST_ONGOING"])
    model = model_view(live, of=entry(ongoing=ongoing, queued=64, max_batch_size=ongoing))
    return create_app(settings, StaticPool(pool_view(model)), GrpcChannel)


async def main(supervisor_pid: int, life_fd: int, *listener_fds: int) -> int:
    end_with(supervisor_pid)
    settings = load_gateway_settings()
    async with signs_of_life(life_fd) as begin:

        def on_started() -> None:
            begin()
            Path(os.environ["TEST_SERVING"], str(os.getpid())).touch()

        own, *others = map(inherited, listener_fds)
        return await serve_shared(application(settings), settings, own, others, on_started=on_started)


if __name__ == "__main__":
    batch_runner.LEASE_S = float(os.environ.get("TEST_LEASE_S", batch_runner.LEASE_S))  # type: ignore[misc]
    sys.exit(asyncio.run(main(*map(int, sys.argv[1:]))))
