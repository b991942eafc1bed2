"""Bounds request headers, in size and in time to arrive: uvicorn reads any number of bytes and waits for ever.

A protocol for uvicorn, below ASGI: it closes connections, and knows nothing of what is asked; what is not HTTP gets the
error that everybody gets. Bodies are bounded by the middleware `body_limit`. Used by the server.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import InvalidRequestError
from gateway.middleware.request_id import HEADER as REQUEST_ID
from gateway.middleware.request_id import new_request_id
from gateway.protocol.responses import encode

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES: Final = 64 * 1024
"""Beyond the chunk, of 256 KiB at most, in which headers begin."""


class BoundedHeadersProtocol(HttpToolsProtocol):
    """One connection. Its clock runs from its start, or a later request's first byte, until the headers are there."""

    def __init__(self, *arguments: Any, headers_timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._headers_timeout_s = headers_timeout_s
        self._overdue: asyncio.TimerHandle | None = None
        self._num_header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        awaited = self._overdue
        super().data_received(data)
        # A chunk that ends something else or completes the headers does not count.
        if awaited is not None and awaited is self._overdue:
            self._num_header_bytes += len(data)
            if self._num_header_bytes > MAX_HEADER_BYTES:
                self._give_up(f"its headers are larger than {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._overdue is None:
            self._expect_headers()

    def on_headers_complete(self) -> None:
        self._stop_clock()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """For what is not HTTP; uvicorn says so in plain text."""
        body = encode(InvalidRequestError("The request is not HTTP that this server can read.").to_body())
        head = (
            "HTTP/1.1 400 Bad Request",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"{REQUEST_ID}: {new_request_id()}",
            "connection: close",
        )
        self.transport.write("".join(f"{line}\r\n" for line in (*head, "")).encode() + body)
        self.transport.close()

    def _expect_headers(self) -> None:
        self._num_header_bytes = 0
        reason = f"its headers did not arrive within {self._headers_timeout_s:g} s"
        self._overdue = self.loop.call_later(self._headers_timeout_s, self._give_up, reason)

    def _stop_clock(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self, reason: str) -> None:
        self._stop_clock()
        logger.info("a connection is closed: %s", reason)
        self.transport.close()
