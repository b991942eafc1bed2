"""The sockets that gateways listen on: one for a process alone, one for each of several on the same address.

Several are separate to the kernel, which spreads new connections evenly over them (SO_REUSEPORT); accepting from one
socket, idle processes take what comes in turns of dozens. Every process inherits all of them: `stand_in` is why.
Knows the settings and the kernel, neither uvicorn nor the application, so that a supervisor can hold them.
"""

from __future__ import annotations

import socket

from gateway.settings import GatewaySettings


class BindError(Exception):
    """The address cannot be listened on; one line says why and what to change."""


def bind(settings: GatewaySettings) -> socket.socket:
    """A socket that is bound but does not listen yet. Raises `BindError`."""
    return _bind(settings, settings.port)


def bind_for_each(num_processes: int, settings: GatewaySettings) -> list[socket.socket]:
    """As many of them on one address. Raises `BindError`."""
    # By itself the kernel would let two supervisors share an address, and no client could tell who answers.
    with bind(settings) as probe:
        port: int = probe.getsockname()[1]
    return [_bind(settings, port, shared=True) for _ in range(num_processes)]


def close_all(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def inherited(fd: int) -> socket.socket:
    """One that the supervisor bound."""
    listener = socket.socket(fileno=fd)
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(settings: GatewaySettings, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Connections inherit it; asyncio sets it only where a socket names its protocol. Without it what follows a first
    # piece, such as a body its headers, waits up to 40 ms for the client to acknowledge that.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _cut_dead_readers(listener, settings.send_timeout_s)
    try:
        listener.bind((settings.host, port))
    except OSError as error:
        listener.close()
        raise BindError(
            f"cannot listen on {settings.host}:{port}: {(error.strerror or str(error)).lower()}; "
            "set AVIARY_PORT (or AVIARY_HOST) to a free address"
        ) from None
    listener.setblocking(False)
    return listener


def _cut_dead_readers(listener: socket.socket, timeout_s: float) -> None:
    """Closing a connection waits for what is still unsent; the kernel must not wait for ever for a client that does
    not read. Connections inherit this from the listener."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
