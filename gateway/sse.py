"""Server-sent events: chunks to bytes on the wire, with keep-alive comments and a cut for clients that stop reading.

Knows OpenAI's framing of chunks (`data: {json}`, an error object as the last event, else `[DONE]`) and sse-starlette;
not what is in a chunk. Replies whose events have names bring a `Framing` of their own. Used by the generation endpoint.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

import msgspec
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError, ServerError
from gateway.protocol.responses import Chunk, encode

logger = logging.getLogger(__name__)

DONE: Final = b"data: [DONE]\n\n"
_HEADERS: Final = {"Cache-Control": "no-cache"}
_LINE_BREAKS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""No line breaks in server-sent events, but in the eyes of clients that split text by Unicode's rules."""


def configure_library() -> None:
    """Undoes what sse-starlette does by itself: ending all streams at SIGTERM, logging every chunk at DEBUG."""
    AppStatus.enable_automatic_graceful_drain = False
    logging.getLogger("sse_starlette").setLevel(logging.INFO)


def event(data: msgspec.Struct | dict[str, Any], name: str = "") -> bytes:
    """One event whose data is one line of JSON."""
    line = encode(data)
    for char, escape in _LINE_BREAKS:
        line = line.replace(char, escape)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + line + b"\n\n"


ChunkT_contra = TypeVar("ChunkT_contra", contravariant=True)


class Framing(Protocol[ChunkT_contra]):
    """How one kind of reply puts its chunks on the wire."""

    def encode(self, chunk: ChunkT_contra) -> bytes: ...

    def error(self, error: ApiError) -> bytes:
        """The end of a stream that failed: nobody may take it as whole."""

    def end(self) -> bytes:
        """What is sent after the last chunk."""


class ChunkEvents:
    """Events without names; after an error, one error event and no `[DONE]`."""

    def encode(self, chunk: Chunk) -> bytes:
        return event(chunk)

    def error(self, error: ApiError) -> bytes:
        return event(error.to_body())

    def end(self) -> bytes:
        return DONE


CHUNK_EVENTS: Final = ChunkEvents()

ChunkT = TypeVar("ChunkT")


async def events(
    chunks: AsyncGenerator[ChunkT, None], framing: Framing[ChunkT], on_end: Callable[[ApiError | None], None]
) -> AsyncIterator[bytes]:
    """The chunks as events, and how they ended."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield framing.encode(chunk)
        except ApiError as error:
            on_end(error)
            yield framing.error(error)
        except Exception:  # the edge: a stream has no status left to tell by
            logger.exception("a stream failed")
            on_end(ServerError())
            yield framing.error(ServerError())
        else:
            on_end(None)
            if last := framing.end():
                yield last


class EventStream(EventSourceResponse):
    """The response around `events`. `on_close` is called however it ends, also when it never began."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        *,
        ping_interval_s: float,
        send_timeout_s: float,
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(
            content,
            headers=_HEADERS,
            sep="\n",
            ping=ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=send_timeout_s,
        )
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("a client stopped reading its stream and was cut off after %g s", self.send_timeout)
        finally:
            self._on_close()
