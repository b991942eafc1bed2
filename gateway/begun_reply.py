"""A reply on its way that is read as a whole and sent to nobody by us: what a line of a batch gets of an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.call import Call
from gateway.output_stream import OutputStream
from gateway.protocol.responses import encode


@dataclass(frozen=True, slots=True)
class BegunReply:
    """Whoever has it must `close` it."""

    stream: OutputStream
    finish: Callable[[], Awaitable[msgspec.Struct]]

    async def whole(self) -> bytes:
        """The reply in JSON. Raises `ApiError`."""
        return encode(await self.finish())

    def close(self) -> None:
        self.stream.close()


class Begins(Protocol):
    """An endpoint, to whoever has bodies for it that came by another way than HTTP."""

    async def begin(self, call: Call, body: bytes) -> BegunReply:
        """Queues what the body asks for. Raises `ApiError`."""
