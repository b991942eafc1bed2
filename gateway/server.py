"""Runs the application on uvicorn, and ends it as a load balancer expects.

At SIGTERM or SIGINT: `/ready` says 503 and new requests are refused at once, open ones finish until the drain timeout,
then each gets an error event; exit status 0. A second signal ends everything at once, status 1. Called by the command
line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Final, cast

import uvicorn
from fastapi import FastAPI

from gateway.bounded_headers import BoundedHeadersProtocol
from gateway.dispatch import Dispatcher
from gateway.errors import DrainingError
from gateway.listener import bind, url_of
from gateway.settings import GatewaySettings
from gateway.signals import SIGNALS, answered
from gateway.stand_in import stand_in

logger = logging.getLogger(__name__)

LAST_WRITES_S: Final = 3
"""After the last request ended: for its bytes to reach the client."""
FORCED_STOP_S: Final = 1
KEEP_ALIVE_S: Final = 75
"""Longer than clients and load balancers keep idle connections, so that they close them, not we."""


class GatewayServer(uvicorn.Server):
    """uvicorn, with our own way to end."""

    def __init__(
        self,
        app: FastAPI,
        settings: GatewaySettings,
        *,
        on_started: Callable[[], None] | None = None,
        others: Sequence[socket.socket] = (),
    ) -> None:
        """`others` are the sockets of the other processes on the same address."""
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", _protocol(settings)),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_WRITES_S,
            )
        )
        self._dispatcher: Dispatcher = app.state.dispatcher
        self._drain_timeout_s = settings.drain_timeout_s
        self._on_started = on_started
        self._others = others
        self._stand_ins: list[asyncio.Task[None]] = []
        self._draining: asyncio.Task[None] | None = None
        self._was_told_to_stop = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._stand_ins = [loop.create_task(stand_in(one, self._new_protocol), name="stand-in") for one in self._others]
        if self._on_started is not None:
            self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would stop listening at the first signal and raise it again at the end; `serve` handles signals."""
        yield

    @property
    def exit_status(self) -> int:
        """Of the process, once it has served."""
        return 1 if self.force_exit else 0

    def stop(self) -> None:
        """First call: drain, then exit. Second call: exit now."""
        if self._was_told_to_stop:
            self.stop_at_once()
        self._was_told_to_stop = True
        self.drain()

    def drain(self) -> None:
        """Take nothing new, finish what is open, then exit. May be called again."""
        if self._draining is None:
            self._dispatcher.drain()
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")

    def stop_at_once(self) -> None:
        logger.warning("stopping at once")
        self.config.timeout_graceful_shutdown = FORCED_STOP_S
        self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._stand_ins:
            task.cancel()
        await asyncio.gather(*self._stand_ins, return_exceptions=True)
        # All of its sockets: what still came in on one would wait until this process has ended.
        await super().shutdown([*(sockets or ()), *self._others])
        if self.force_exit:
            # uvicorn leaves this out when forced; it is quick, and lets workers know at once.
            await self.lifespan.shutdown()

    def _new_protocol(self) -> asyncio.Protocol:
        """As uvicorn makes one for a connection of its own socket."""
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _drain(self) -> None:
        logger.info("draining: open requests have %g s to finish", self._drain_timeout_s)
        if not await self._dispatcher.wait_idle(self._drain_timeout_s):
            logger.warning("%d requests did not finish in time", self._dispatcher.fail_all(DrainingError()))
        self.should_exit = True


async def serve(
    app: FastAPI,
    settings: GatewaySettings,
    *,
    on_started: Callable[[str], None] | None = None,
    over: asyncio.Event | None = None,
) -> int:
    """Serves until a signal, or until it is `over`, in the main thread; the exit status.

    `on_started` gets the URL once it answers. Raises `BindError`.
    """
    listener = bind(settings)
    url = url_of(listener)
    server = GatewayServer(app, settings, on_started=lambda: on_started(url) if on_started else None)
    with contextlib.closing(listener), answered(dict.fromkeys(SIGNALS, server.stop)):
        async with _drained_when(over, server):
            await server.serve(sockets=[listener])
    return server.exit_status


async def serve_shared(
    app: FastAPI,
    settings: GatewaySettings,
    listener: socket.socket,
    others: Sequence[socket.socket],
    *,
    on_started: Callable[[], None],
    over: asyncio.Event | None = None,
) -> int:
    """Serves on an address that other processes serve too, until its supervisor's signal, or until it is `over`.

    Returns the exit status.

    SIGTERM drains however often it comes, for a service manager may send it to every process that it sees, besides the
    supervisor that hands it on. SIGINT, which nobody else sends to it, ends it at once.
    """
    server = GatewayServer(app, settings, on_started=on_started, others=others)
    with contextlib.closing(listener), answered({signal.SIGTERM: server.drain, signal.SIGINT: server.stop_at_once}):
        async with _drained_when(over, server):
            await server.serve(sockets=[listener])
    return server.exit_status


@contextlib.asynccontextmanager
async def _drained_when(over: asyncio.Event | None, server: GatewayServer) -> AsyncIterator[None]:
    async def drain(event: asyncio.Event) -> None:
        await event.wait()
        server.drain()

    waiting = None if over is None else asyncio.create_task(drain(over), name="drain-when-over")
    try:
        yield
    finally:
        if waiting is not None:
            waiting.cancel()


def _protocol(settings: GatewaySettings) -> Callable[..., asyncio.Protocol]:
    return partial(BoundedHeadersProtocol, headers_timeout_s=settings.body_timeout_s)
