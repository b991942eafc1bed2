"""/v1/files: what batches read and what they write. Hands over to `offline`, but for forms and bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response

from gateway.client import ClientGoneError, unrecorded
from gateway.errors import (
    BodyTooLargeError,
    FileMissingError,
    FilesClosedError,
    InvalidRequestError,
    MediaTypeError,
)
from gateway.offline import Offline
from gateway.protocol import openapi
from gateway.protocol.files import DeletedFile, FileList, FileListQuery, FileObject, UploadFields, check_form
from gateway.protocol.responses import encode

router = APIRouter()

PATH: Final = "/v1/files"
FORM_TYPE: Final = "multipart/form-data"
_CHUNK_BYTES: Final = 1024 * 1024
_MAX_FIELDS: Final = 16
_MAX_FIELD_BYTES: Final = 4096
_ERRORS: Final = openapi.errors(InvalidRequestError, FileMissingError, FilesClosedError)


@router.post(
    PATH,
    summary="Upload a file",
    openapi_extra={"requestBody": {"required": True, "content": {FORM_TYPE: {"schema": UploadFields.form_schema()}}}},
    responses=openapi.success("The file.", FileObject) | openapi.errors(*openapi.BODY_ERRORS, FilesClosedError),
)
async def upload_file(http: Request) -> Response:
    return await unrecorded(_upload(http))


async def _upload(http: Request) -> Response:
    offline = _offline(http)
    offline.check_open()
    _check_sender(http)
    form = await _form(http)
    try:
        uploads = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
        check_form((key for key, _ in uploads), num_files=len(uploads))
        fields = UploadFields.parse((key, value) for key, value in form.multi_items() if isinstance(value, str))
        [(_, upload)] = uploads
        _check_size(upload, http.app.state.settings.max_file_bytes)
        file = await offline.upload(_chunks(upload), upload.filename or "", fields)
    finally:
        await form.close()
    return _json(encode(file))


@router.get(PATH, summary="List the files", responses=openapi.success("Files, page by page.", FileList) | _ERRORS)
async def list_files(http: Request) -> Response:
    query = FileListQuery.parse(http.query_params.multi_items())
    return _json(encode(await _offline(http).list_files(query)))


@router.get("/v1/files/{file_id}", summary="One file", responses=openapi.success("The file.", FileObject) | _ERRORS)
async def retrieve_file(http: Request, file_id: str) -> Response:
    return _json(encode(await _offline(http).file(file_id)))


@router.get(
    "/v1/files/{file_id}/content",
    summary="What is in a file",
    response_class=FileResponse,
    responses=openapi.text("The bytes, as they were uploaded or written.", "application/octet-stream") | _ERRORS,
)
async def retrieve_content(http: Request, file_id: str) -> Response:
    file, path = await _offline(http).content(file_id)
    headers = {"x-content-type-options": "nosniff"}
    return FileResponse(path, headers=headers, filename=file.filename, media_type="application/octet-stream")


@router.delete(
    "/v1/files/{file_id}", summary="Delete a file", responses=openapi.success("It is gone.", DeletedFile) | _ERRORS
)
async def delete_file(http: Request, file_id: str) -> Response:
    await _offline(http).delete_file(file_id)
    return _json(encode(DeletedFile(id=file_id)))


def _check_sender(http: Request) -> None:
    """A browser sends a form to another site without asking that site first. Raises `MediaTypeError`."""
    origin = http.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != http.headers.get("host"):
        raise MediaTypeError("A form that a page of another site sends is not read.")


async def _form(http: Request) -> FormData:
    """Raises `ApiError` or `ClientGoneError`."""
    if not http.headers.get("content-type", "").lower().startswith(FORM_TYPE):
        raise MediaTypeError(f"A file is uploaded in a body of content-type '{FORM_TYPE}'.")
    try:
        return await http.form(max_files=_MAX_FIELDS, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES)
    except ClientDisconnect:
        raise ClientGoneError from None
    except HTTPException as error:
        raise InvalidRequestError(f"We could not parse the form of your request: {error.detail}") from None


def _check_size(upload: UploadFile, max_bytes: int) -> None:
    """Raises `BodyTooLargeError`."""
    if upload.size is None or upload.size > max_bytes:
        raise BodyTooLargeError(max_bytes)


async def _chunks(upload: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await upload.read(_CHUNK_BYTES):
        yield chunk


def _offline(http: Request) -> Offline:
    offline: Offline = http.app.state.offline
    return offline


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
