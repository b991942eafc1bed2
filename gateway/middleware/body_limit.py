"""Bounds request bodies: size, time to arrive, and form.

Pure ASGI. Counts what arrives, whatever the headers claim; refuses compressed bodies, whose size nobody knows before
they are unpacked, and bodies that a browser would send across sites without asking. Uploads are forms and may be
larger; their routes look at who sends them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BodyTimeoutError, BodyTooLargeError, MediaTypeError, shortened

_JSON = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_FORM = re.compile(r"multipart/form-data\s*;.*", re.IGNORECASE)
_LONGEST_LENGTH = 20
"""Digits of a content-length worth reading."""
FORM_BYTES: Final = 64 * 1024
"""What a form may have besides its file."""
SLOWEST_BYTES_PER_S: Final = 64 * 1024
"""A body that comes faster may take longer than its time: large ones do."""


class BodyLimitMiddleware:
    """Raises `ApiError`s; the error middleware must be around it."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, timeout_s: float, uploads: Mapping[str, int] | None = None
    ) -> None:
        """`uploads`: how large files may be, by the paths that take some."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._uploads = uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            max_file_bytes = self._uploads.get(scope["path"])
            max_bytes = self._max_body_bytes if max_file_bytes is None else max_file_bytes + FORM_BYTES
            if scope["method"] in _WITH_BODY and _has_body(headers):
                self._check_headers(headers, max_bytes, is_upload=max_file_bytes is not None)
            receive = _BoundedBody(receive, max_bytes, self._timeout_s)
        await self._app(scope, receive, send)

    def _check_headers(self, headers: Headers, max_bytes: int, *, is_upload: bool) -> None:
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise MediaTypeError(
                f"A request body in content-encoding '{shortened(encoding)}' is not read; send it as it is."
            )
        # A browser asks before it sends a body of this type to another site; it does not for one without a type.
        media_type = headers.get("content-type")
        expected, form = ("multipart/form-data", _FORM) if is_upload else ("application/json", _JSON)
        if media_type is None:
            raise MediaTypeError(f"A request body needs the header 'content-type: {expected}'.")
        if not form.fullmatch(media_type.strip()):
            raise MediaTypeError(
                f"A request body of content-type '{shortened(media_type)}' is not read; send '{expected}'."
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > _LONGEST_LENGTH or int(length) > max_bytes):
            raise BodyTooLargeError(max_bytes)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


class _BoundedBody:
    """`receive` that gives up on a body that is too large or too slow; what comes after the body waits freely."""

    def __init__(self, receive: Receive, max_body_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._num_bytes = 0
        self._is_complete = False
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline + self._num_bytes / SLOWEST_BYTES_PER_S):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeoutError(self._timeout_s) from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_body_bytes:
            raise BodyTooLargeError(self._max_body_bytes)
        self._is_complete = not message.get("more_body", False)
        return message
