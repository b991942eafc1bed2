"""/v1/batches: requests by the file, answered when there is room. Hands over to `offline`; `batch_runner` runs them."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.client import parsed, unrecorded
from gateway.errors import (
    BatchNotFoundError,
    FileMissingError,
    FilesClosedError,
    InvalidRequestError,
    QueueFullError,
)
from gateway.offline import Offline
from gateway.protocol import openapi
from gateway.protocol.batches import Batch, BatchList, BatchListQuery, BatchRequest
from gateway.protocol.responses import encode

router = APIRouter()

_ERRORS: Final = openapi.errors(InvalidRequestError, BatchNotFoundError, FilesClosedError)
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": BatchRequest.body_schema(),
                "example": {
                    "input_file_id": "file-0123456789abcdef0123456789abcdef",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                },
            }
        },
    }
}


@router.post(
    "/v1/batches",
    summary="Answer the requests of a file",
    openapi_extra=_BODY,
    responses=openapi.success("The batch.", Batch)
    | openapi.errors(*openapi.BODY_ERRORS, FileMissingError, FilesClosedError, QueueFullError),
)
async def create_batch(http: Request) -> Response:
    return await unrecorded(_create(http))


async def _create(http: Request) -> Response:
    request = await parsed(http, BatchRequest.parse)
    return _json(encode(await _offline(http).create(request)))


@router.get(
    "/v1/batches", summary="List the batches", responses=openapi.success("Batches, page by page.", BatchList) | _ERRORS
)
async def list_batches(http: Request) -> Response:
    query = BatchListQuery.parse(http.query_params.multi_items())
    return _json(encode(await _offline(http).list_batches(query)))


@router.get("/v1/batches/{batch_id}", summary="One batch", responses=openapi.success("The batch.", Batch) | _ERRORS)
async def retrieve_batch(http: Request, batch_id: str) -> Response:
    return _json(encode(await _offline(http).batch(batch_id)))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    summary="Answer no more of a batch's requests",
    responses=openapi.success("The batch.", Batch) | _ERRORS,
)
async def cancel_batch(http: Request, batch_id: str) -> Response:
    return _json(encode(await _offline(http).cancel(batch_id)))


def _offline(http: Request) -> Offline:
    offline: Offline = http.app.state.offline
    return offline


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
