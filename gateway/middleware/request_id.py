"""Gives every request an id and a time of arrival, and every response the headers that tell them.

Pure ASGI and outermost, so that also the responses of other middleware carry them. The id is the client's when it is
harmless; it names the request in logs and headers only, never inside the pool.
"""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
ANTHROPICS_HEADER = "request-id"
_HARMLESS = re.compile(r"[\w-]{1,64}", re.ASCII)


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


class RequestIdMiddleware:
    """Sets `request.state.request_id` and `request.state.received_at` (by `time.monotonic`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received_at = time.monotonic()
        offered = Headers(scope=scope).get(HEADER, "")
        request_id = offered if _HARMLESS.fullmatch(offered) else new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id, received_at=received_at)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = headers[ANTHROPICS_HEADER] = request_id
                headers["openai-processing-ms"] = str(round((time.monotonic() - received_at) * 1000))
            await send(message)

        await self._app(scope, receive, send_with_headers)
