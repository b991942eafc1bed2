"""The client's side of one HTTP request: its body, whether it is still there, and what the metrics note at the end.

What all endpoints that take a body share. Knows starlette's requests and responses, not what the bodies mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.errors import ApiError, ServerError
from gateway.metrics import RequestRecord

_LARGE_BODY_BYTES: Final = 64 * 1024
"""From here on a body is parsed in a thread, so that the event loop stays responsive."""
CLIENT_CLOSED_REQUEST: Final = 499
"""Status in metrics of requests whose client went away; nobody else ever sees it."""

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client hung up before it got an answer."""


async def parsed(http: Request, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of the body. Raises `ClientGoneError`, and what `parse` raises."""
    try:
        body = await http.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    return await parsed_body(body, parse)


async def parsed_body(body: bytes, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a body that is here. Raises what `parse` raises."""
    if len(body) < _LARGE_BODY_BYTES:
        return parse(body)
    return await asyncio.to_thread(parse, body)


async def recorded(record: RequestRecord, response: Awaitable[Response]) -> Response:
    """The response, with every other end noted in the metrics. Raises `ApiError`."""
    try:
        return await response
    except ApiError as error:
        record.failed(error)
        raise
    except ClientGoneError:
        record.done(CLIENT_CLOSED_REQUEST)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except Exception:  # only counted here; the error middleware logs it and answers
        record.done(ServerError.status)
        raise


async def unrecorded(response: Awaitable[Response]) -> Response:
    """The response of an endpoint that is no model's, to a client that may hang up before. Raises `ApiError`."""
    try:
        return await response
    except ClientGoneError:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


async def unless_gone(http: Request, work: Awaitable[T]) -> T:
    """The result of `work`, or `ClientGoneError` as soon as the client hangs up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hung_up(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
