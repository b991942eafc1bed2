"""Takes the connections that another process of the same address leaves waiting: it has died, or it hangs.

Nobody needs to notice that, or to tell: a connection that waits for longer than `PATIENCE_S` goes to whoever comes
first. The server, its only user, runs one for each of the other processes' sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 0.25


async def stand_in(listener: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
    """For ever; every connection taken gets a new protocol."""
    loop = asyncio.get_running_loop()
    while True:
        await _readable(listener)
        await asyncio.sleep(PATIENCE_S)
        # An error: its own process took them, as it mostly does, or does not listen yet.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.setblocking(False)
                await loop.connect_accepted_socket(protocol, connection)


async def _readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    has_connection = asyncio.Event()
    loop.add_reader(listener, has_connection.set)
    try:
        await has_connection.wait()
    finally:
        loop.remove_reader(listener)
