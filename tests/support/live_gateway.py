"""A real gateway on a real port, in a thread of this process, in front of scripted workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from fastapi import FastAPI

from gateway.app import create_app
from gateway.channel import Connect
from gateway.dispatch import Dispatcher
from gateway.listener import bind, url_of
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings
from model_registry.contract import PoolView
from model_registry.schema import RegistryEntry
from tests.support.scripted_pool import ScriptedWorker, StaticPool, connect_to, model_view, pool_view, replica

START_S = 10.0

T = TypeVar("T")


class LiveGateway:
    """Context manager: serving inside, stopped at once outside. The workers live on the gateway's event loop."""

    def __init__(
        self,
        workers: Mapping[str, ScriptedWorker],
        *,
        of: RegistryEntry | None = None,
        view: PoolView | None = None,
        connect: Connect | None = None,
        **settings: Any,
    ) -> None:
        """Without `view`, every worker is a ready replica; `connect` reaches real workers instead."""
        self._settings = GatewaySettings(port=0, **settings)
        self._view = view or pool_view(model_view(*(replica(name) for name in workers), of=of))
        self._connect = connect or connect_to(workers)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="gateway")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.app: FastAPI | None = None
        self.server: GatewayServer | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_S):
            raise TimeoutError(f"the gateway did not start within {START_S:g} s")
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.stop()
            self.stop()
        self._thread.join(START_S)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def dispatcher(self) -> Dispatcher:
        assert self.app is not None
        dispatcher: Dispatcher = self.app.state.dispatcher
        return dispatcher

    def call(self, function: Callable[[], T]) -> T:
        """Runs `function` on the gateway's event loop."""

        async def run() -> T:
            return function()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(START_S)

    def stop(self) -> None:
        """What the first signal does; the second time, what the second does."""
        assert self.server is not None
        self.call(self.server.stop)

    def wait_stopped(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.app = create_app(self._settings, StaticPool(self._view), self._connect)
        self.server = GatewayServer(self.app, self._settings)
        listener = bind(self._settings)
        self.url = url_of(listener)
        serving = asyncio.create_task(self.server.serve(sockets=[listener]))
        while not self._is_serving():  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.005)
        self._started.set()
        await serving

    def _is_serving(self) -> bool:
        assert self.server is not None
        has_ready = any(replica.address for model in self._view.models for replica in model.replicas)
        return self.server.started and (self.dispatcher.can_serve or not has_ready)
