"""Server-sent events: chunks to a response, with keep-alive comments and a cut for clients that stop reading.

Knows sse-starlette; not what is in a chunk, nor how it is put on the wire. Used by the generation endpoint.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, TypeVar

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError, ServerError
from gateway.framing import Framing

logger = logging.getLogger(__name__)

_HEADERS: Final = {"Cache-Control": "no-cache"}

ChunkT = TypeVar("ChunkT")


def configure_library() -> None:
    """Undoes what sse-starlette does by itself: ending all streams at SIGTERM, logging every chunk at DEBUG."""
    AppStatus.enable_automatic_graceful_drain = False
    logging.getLogger("sse_starlette").setLevel(logging.INFO)


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
