"""A real worker without Ray: engine loop, exchange and gRPC channel, on an event loop of its own in a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

from model_registry.contract import Frame, ModelView, ReplicaState, ReplicaView
from model_registry.schema import RegistryEntry
from workers.channel import ChannelServer
from workers.engine.engine import Engine
from workers.engine.loop import EngineLoop
from workers.exchange import Exchange

START_S = 10.0


class LiveWorker:
    """Context manager: reachable at `address` inside."""

    def __init__(self, engine: Engine, secret: str) -> None:
        self._engine = engine
        self._secret = secret
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="worker")
        self._exchange: Exchange | None = None
        self.engine_loop: EngineLoop | None = None
        self.address = ""

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(START_S):
            raise TimeoutError(f"the worker did not start within {START_S:g} s")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_S)

    @property
    def num_sequences(self) -> int:
        """Sequences in the engine after its last step."""
        assert self.engine_loop is not None
        status = self.engine_loop.status()
        return status.num_running + status.num_waiting

    def view(self, entry: RegistryEntry) -> ModelView:
        """The pool's view of a model with this worker as its only replica."""
        ready = ReplicaView(replica_id="live", state=ReplicaState.READY, address=self.address)
        limits = self._engine.limits
        return ModelView(entry=entry, created=1_700_000_000, replicas=(ready,), max_model_len=limits.max_model_len)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.engine_loop = EngineLoop(self._engine, self._on_frame)
        self._exchange = Exchange(self.engine_loop, max_requests=64)
        channel = ChannelServer(self._exchange, self._secret)
        self.engine_loop.start()
        self.address = await channel.start("127.0.0.1")
        self._started.set()
        await self._stop.wait()
        await channel.stop()
        self.engine_loop.stop(START_S)

    def _on_frame(self, frame: Frame) -> None:
        assert self._loop is not None
        assert self._exchange is not None
        self._loop.call_soon_threadsafe(self._exchange.route, frame)
