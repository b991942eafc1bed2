"""What /v1/batches takes and sends. Knows OpenAI's wire format only."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from pydantic import Field

from gateway.protocol.files import ExpiresAfter
from gateway.protocol.json_schema import inlined
from gateway.protocol.response_create import MAX_METADATA, MetadataKey, MetadataValue
from gateway.protocol.strict_json import parse_json
from gateway.protocol.validation import RequestModel

BatchEndpoint = Literal["/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions"]
MAX_BATCHES_LISTED: Final = 100


class BatchStatus(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line of the input, or with all of it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[BatchError, ...]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: BatchEndpoint
    model: str | None = None
    """The one that all its requests are about, if there is one."""
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus = BatchStatus.VALIDATING
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage = BatchUsage()
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[Batch, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchRequest(RequestModel):
    input_file_id: str = Field(description="Id of an uploaded file: one JSON object a line, each a request.")
    endpoint: BatchEndpoint = Field(description="What all its requests are for.")
    completion_window: Literal["24h"] = Field(description="How long it may take.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)] | None = Field(
        None, description="Kept and returned."
    )
    output_expires_after: ExpiresAfter | None = Field(None, description="How long its output files are kept.")

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises `InvalidRequestError`."""
        return cls.check(parse_json(body), max_choices=1)

    @classmethod
    def body_schema(cls) -> dict[str, Any]:
        """JSON schema of the body, for the OpenAPI document."""
        whole = cls.model_json_schema()
        schema: dict[str, Any] = inlined(whole, whole.pop("$defs", {}))
        return schema


class BatchListQuery(RequestModel):
    """Of all batches, the newest first."""

    after: str | None = Field(None, description="The id of a batch: those that are older.")
    limit: Annotated[int, Field(strict=False, ge=1, le=MAX_BATCHES_LISTED, description="Batches at most.")] = 20

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """Raises `InvalidRequestError`."""
        return cls.check(dict(pairs), max_choices=1)
