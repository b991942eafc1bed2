"""The edge where exceptions become responses: OpenAI's error body, whatever went wrong.

Pure ASGI, right inside the request id. Known errors say what they say; unknown ones become a 500 without details, with
a traceback in the log under the request's id. Also turns the framework's own 404 and 405 into ours.
"""

from __future__ import annotations

import logging
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ApiError, InvalidRequestError, MethodNotAllowedError, ServerError, UnknownUrlError

_METHODS: Final = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

logger = logging.getLogger(__name__)


class ErrorMiddleware:
    """Catches everything that the application raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        except Exception:  # the edge: nothing may reach the client but a plain 500
            logger.exception("request %s failed", scope["state"]["request_id"])
            if not started:
                await error_response(ServerError())(scope, receive, send)


def error_response(error: ApiError) -> Response:
    return JSONResponse(error.to_body(), error.status, error.headers)


async def framework_error(request: Request, error: Exception) -> Response:
    """Handler for what starlette's router raises by itself."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"]
    if status == 404:
        return error_response(UnknownUrlError(request.method, path))
    if status == 405:
        return error_response(MethodNotAllowedError(request.method, path, ", ".join(_methods_of(request))))
    if status < 500:
        return JSONResponse(InvalidRequestError("The request cannot be served.").to_body(), status)
    return error_response(ServerError())


def _methods_of(request: Request) -> list[str]:
    """Those that the request's URL takes. The router's own answer knows those of one route only."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
