"""The edge where exceptions become responses: OpenAI's error body (Anthropic's on its paths), whatever went wrong.

Pure ASGI, right inside the request id. Known errors say what they say; unknown ones become a 500 without details, with
a traceback in the log under the request's id. Also turns the framework's own 404 and 405 into ours.
"""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.error_bodies import error_body
from gateway.errors import ApiError, InvalidRequestError, MethodNotAllowedError, ServerError, UnknownUrlError
from gateway.protocol.responses import encode

logger = logging.getLogger(__name__)

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


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
            await error_response(error, scope)(scope, receive, send)
        except Exception:  # the edge: nothing may reach the client but a plain 500
            logger.exception("request %s failed", scope["state"]["request_id"])
            if not started:
                await error_response(ServerError(), scope)(scope, receive, send)


def error_response(error: ApiError, scope: Scope) -> Response:
    body = encode(error_body(error, scope["path"], scope["state"]["request_id"]))
    return Response(body, error.status, error.headers, "application/json")


async def framework_error(request: Request, error: Exception) -> Response:
    """Handler for what starlette's router raises by itself."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    path = request.scope["path"]
    if status == 404:
        return error_response(UnknownUrlError(request.method, path), request.scope)
    if status == 405:
        return error_response(MethodNotAllowedError(request.method, path, _allowed(request)), request.scope)
    if status < 500:
        return JSONResponse(InvalidRequestError("The request cannot be served.").to_body(), status)
    return error_response(ServerError(), request.scope)


def _allowed(request: Request) -> str:
    """Every method of the path; the router itself names those of one route."""
    found = (
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    )
    return ", ".join(found)
