"""A gateway over a real pool, in the test's own process and on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gateway.app import create_app
from gateway.channel import GrpcChannel
from gateway.dispatch import Dispatcher
from gateway.errors import ModelNotFoundError
from gateway.listener import bind, url_of
from gateway.pool_client import RayPoolClient
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True)
class PoolGateway:
    url: str
    dispatcher: Dispatcher

    async def serves(self, model_id: str) -> None:
        """Until the gateway can serve the model, or wake it."""
        await self.knows(model_id)
        async with asyncio.timeout(10):
            while not self.dispatcher.can_serve:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def knows(self, model_id: str) -> None:
        """Until the gateway has heard of the model."""
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(ModelNotFoundError):
                    self.dispatcher.model(model_id)
                    return
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def pool_gateway() -> AsyncIterator[PoolGateway]:
    """Needs a Ray that this process has joined, with a pool or one to come."""
    settings = GatewaySettings(port=0)
    app = create_app(settings, RayPoolClient(), GrpcChannel)
    started = asyncio.Event()
    server = GatewayServer(app, settings, on_started=started.set)
    with contextlib.closing(bind(settings)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await started.wait()
        yield PoolGateway(url_of(listener), app.state.dispatcher)
        server.stop()
        await serving
