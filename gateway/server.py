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
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, cast

import uvicorn
from fastapi import FastAPI

from gateway.bounded_headers import BoundedHeadersProtocol
from gateway.dispatch import Dispatcher
from gateway.errors import DrainingError
from gateway.settings import GatewaySettings

logger = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LAST_WRITES_S: Final = 3
"""After the last request ended: for its bytes to reach the client."""
FORCED_STOP_S: Final = 1
KEEP_ALIVE_S: Final = 75
"""Longer than clients and load balancers keep idle connections, so that they close them, not we."""


class BindError(Exception):
    """The address cannot be listened on; one line says why and what to change."""


class GatewayServer(uvicorn.Server):
    """uvicorn, with our own way to end."""

    def __init__(
        self, app: FastAPI, settings: GatewaySettings, *, on_started: Callable[[], None] | None = None
    ) -> None:
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
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would stop listening at the first signal and raise it again at the end; `serve` handles signals."""
        yield

    def stop(self) -> None:
        """First call: drain, then exit. Second call: exit now."""
        if self._draining is None:
            self._dispatcher.drain()
            self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")
        else:
            logger.warning("stopping at once")
            self.config.timeout_graceful_shutdown = FORCED_STOP_S
            self.force_exit = True
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves this out when forced; it is quick, and lets workers know at once.
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        logger.info("draining: open requests have %g s to finish", self._drain_timeout_s)
        if not await self._dispatcher.wait_idle(self._drain_timeout_s):
            logger.warning("%d requests did not finish in time", self._dispatcher.fail_all(DrainingError()))
        self.should_exit = True


async def serve(app: FastAPI, settings: GatewaySettings, *, on_started: Callable[[str], None] | None = None) -> int:
    """Serves until a signal, in the main thread; the exit status. `on_started` gets the URL once it answers.

    Raises `BindError`.
    """
    listener = bind(settings)
    url = url_of(listener)
    server = GatewayServer(app, settings, on_started=lambda: on_started(url) if on_started else None)
    with contextlib.closing(listener), _on_signals(asyncio.get_running_loop(), server.stop):
        await server.serve(sockets=[listener])
    return 1 if server.force_exit else 0


def _protocol(settings: GatewaySettings) -> Callable[..., asyncio.Protocol]:
    return partial(BoundedHeadersProtocol, headers_timeout_s=settings.body_timeout_s)


@contextlib.contextmanager
def _on_signals(loop: asyncio.AbstractEventLoop, handler: Callable[[], None]) -> Iterator[None]:
    for one in SIGNALS:
        loop.add_signal_handler(one, handler)
    try:
        yield
    finally:
        for one in SIGNALS:
            loop.remove_signal_handler(one)


def bind(settings: GatewaySettings) -> socket.socket:
    """A socket that is bound but does not listen yet. Raises `BindError`."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _cut_dead_readers(listener, settings.send_timeout_s)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise BindError(
            f"cannot listen on {settings.host}:{settings.port}: {(error.strerror or str(error)).lower()}; "
            "set AVIARY_PORT (or AVIARY_HOST) to a free address"
        ) from None
    listener.setblocking(False)
    return listener


def _cut_dead_readers(listener: socket.socket, timeout_s: float) -> None:
    """Closing a connection waits for what is still unsent; the kernel must not wait for ever for a client that does
    not read. Connections inherit this from the listener."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
