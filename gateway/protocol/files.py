"""What /v1/files takes and sends. Knows OpenAI's wire format only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from pydantic import Field

from gateway.errors import InvalidRequestError, MissingParameterError, UnknownParameterError, shortened
from gateway.protocol.validation import RequestModel

Purpose = Literal["batch", "batch_output"]
PURPOSE: Final = "batch"
"""What files can be uploaded for."""
ELSEWHERE: Final = ("assistants", "evals", "fine-tune", "user_data", "vision")
"""What OpenAI takes files for besides."""
MAX_FILES_LISTED: Final = 10_000
MIN_EXPIRY_S: Final = 3600
MAX_EXPIRY_S: Final = 30 * 24 * 3600
MAX_NAME_CHARS: Final = 255
_FIELD_IN_EXPIRY: Final = re.compile(r"expires_after\[(\w{1,32})\]", re.ASCII)


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


class DeletedFile(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[FileObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ExpiresAfter(RequestModel):
    """For how long something is kept."""

    anchor: Literal["created_at"] = Field(description="From when on it is counted: since the file was made.")
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S, description="How long it is kept.")


class UploadFields(RequestModel):
    """An upload's form, but for the file. What is inside a field comes as `expires_after[seconds]`."""

    purpose: str = Field(description="What the file is for: only `batch` is taken.")
    expires_after: ExpiresAfter | None = Field(None, description="How long it is kept.")

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Raises `InvalidRequestError`."""
        fields: dict[str, Any] = {}
        for key, value in pairs:
            inner = _FIELD_IN_EXPIRY.fullmatch(key)
            if inner is None:
                fields[key] = value
            else:
                fields.setdefault("expires_after", {})[inner[1]] = _number(value) if inner[1] == "seconds" else value
        upload = cls.check(fields, max_choices=1)
        _check_purpose(upload.purpose)
        return upload

    @classmethod
    def form_schema(cls) -> dict[str, Any]:
        """JSON schema of the form, for the OpenAPI document."""
        inner = ExpiresAfter.model_json_schema()["properties"]
        fields = {
            "file": {"type": "string", "format": "binary", "description": "Requests, one JSON object a line."},
            "purpose": {"const": PURPOSE, "description": "What the file is for."},
            **{f"expires_after[{name}]": schema for name, schema in inner.items()},
        }
        return {
            "type": "object",
            "properties": fields,
            "required": ["file", "purpose"],
            "additionalProperties": False,
            "dependentRequired": {
                "expires_after[anchor]": ["expires_after[seconds]"],
                "expires_after[seconds]": ["expires_after[anchor]"],
            },
        }


class FileListQuery(RequestModel):
    """Of all files."""

    after: str | None = Field(None, description="The id of a file: those that come after it in this order.")
    limit: Annotated[int, Field(strict=False, ge=1, le=MAX_FILES_LISTED, description="Files at most.")] = (
        MAX_FILES_LISTED
    )
    order: Literal["asc", "desc"] = Field("desc", description="The newest file last or first.")
    purpose: str | None = Field(None, description="Only files for this.")

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Raises `InvalidRequestError`."""
        return cls.check(dict(pairs), max_choices=1)


def _number(text: str) -> int | str:
    """What is no number is refused like other wrong values."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_EXPIRY_S)) + 1 else text


def _check_purpose(purpose: str) -> None:
    if purpose in ELSEWHERE:
        raise InvalidRequestError(
            f"Unsupported value: 'purpose' does not support '{purpose}' on this server, where files are the input of "
            f"batches. Set it to '{PURPOSE}'.",
            param="purpose",
            code="unsupported_value",
        )
    if purpose != PURPOSE:
        raise InvalidRequestError(
            f"Invalid value for 'purpose': expected '{PURPOSE}', but got '{shortened(purpose)}' instead.",
            param="purpose",
            code="invalid_value",
        )


def check_form(names: Iterable[str], *, num_files: int) -> None:
    """What a form consists of. Raises `InvalidRequestError`."""
    for name in names:
        if name != "file":
            raise UnknownParameterError(shortened(name))
    if num_files == 0:
        raise MissingParameterError("file")
    if num_files > 1:
        raise InvalidRequestError(
            f"Invalid 'file': one file at a time, but got {num_files}.", param="file", code="invalid_value"
        )


def safe_name(name: str) -> str:
    """A client's name for a file, as it may be shown and sent in a header. It is no path here."""
    last = re.split(r"[/\\]", name)[-1]
    printable = "".join(char if char.isprintable() else "_" for char in last).strip()
    return printable[:MAX_NAME_CHARS] or "file"
