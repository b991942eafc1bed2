"""A name server as container engines run one: it knows the machines of one network by name, and nothing else.

Answers over UDP with the address of a known name, and that there is none to everything else. Used by `machines`.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Final, Self

PORT: Final = 53
TYPE_A: Final = 1
ANSWER: Final = 0x8400
"""A response with authority."""
NO_SUCH_NAME: Final = 3
TTL_S: Final = 5
MAX_QUERY_BYTES: Final = 512


class NameServer:
    """Context manager: answers inside."""

    def __init__(self, address: str, names: Mapping[str, str], enter: Callable[[], None]) -> None:
        """`enter` puts the serving thread into the network in which `address` exists."""
        self._address = address
        self._names = names
        self._enter = enter
        self._socket: socket.socket | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="name-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(10):
            raise TimeoutError("the name server did not start")
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            # What wakes the thread, and ends it: nobody else sends nothing.
            self._socket.sendto(b"", (self._address, PORT))
        self._thread.join()

    def _serve(self) -> None:
        self._enter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as self._socket:
            self._socket.bind((self._address, PORT))
            self._started.set()
            while True:
                query, sender = self._socket.recvfrom(MAX_QUERY_BYTES)
                if not query:
                    return
                self._socket.sendto(answer_to(query, self._names), sender)


def answer_to(query: bytes, names: Mapping[str, str]) -> bytes:
    """The reply to one question, which is repeated in it, as RFC 1035 has it."""
    name, end = _name_at(query, 12)
    (kind,) = struct.unpack_from("!H", query, end)
    address = names.get(name.lower())
    records = b""
    if address is not None and kind == TYPE_A:
        # The name is the one at offset 12; class 1 is the internet.
        records = struct.pack("!HHHIH", 0xC00C, TYPE_A, 1, TTL_S, 4) + socket.inet_aton(address)
    flags = ANSWER | (0 if address is not None else NO_SUCH_NAME)
    header = query[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0)
    return header + query[12 : end + 4] + records


def _name_at(query: bytes, start: int) -> tuple[str, int]:
    """A dotted name and the offset behind it."""
    labels, position = [], start
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode())
        position += 1 + length
    return ".".join(labels), position + 1
