"""What the OpenAPI document says of answers: the objects of `responses`, and one error object under every other status.

Pure. Routes hand `success(…) | errors(…)` to the framework, which refer to `components()`; `app` adds those to the
document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import (
    ApiError,
    BodyTimeoutError,
    BodyTooLargeError,
    DeadlineError,
    DrainingError,
    InvalidRequestError,
    MediaTypeError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    QueueFullError,
    ServerError,
)
from gateway.protocol.batches import Batch, BatchList
from gateway.protocol.embeddings import EmbeddingReply
from gateway.protocol.files import DeletedFile, FileList, FileObject
from gateway.protocol.message_objects import EVENTS as MESSAGE_EVENTS
from gateway.protocol.message_objects import Message, MessageError, MessageTokensCount
from gateway.protocol.response_objects import EVENTS, DeletedResponse, ItemList, Response
from gateway.protocol.responses import ChatCompletion, ChatCompletionChunk, ModelCard, ModelList, TextCompletion
from gateway.protocol.tokenization import DetokenizeReply, TokenizeReply

Responses = dict[int | str, dict[str, Any]]
"""What FastAPI takes as `responses` of a route."""

REPLIES = (
    TextCompletion,
    ChatCompletion,
    ChatCompletionChunk,
    Response,
    *EVENTS,
    DeletedResponse,
    ItemList,
    Message,
    *MESSAGE_EVENTS,
    MessageError,
    MessageTokensCount,
    EmbeddingReply,
    TokenizeReply,
    DetokenizeReply,
    ModelCard,
    ModelList,
    FileObject,
    FileList,
    DeletedFile,
    Batch,
    BatchList,
)
"""All that `success` may refer to."""
BODY_ERRORS = (InvalidRequestError, BodyTimeoutError, BodyTooLargeError, MediaTypeError)
"""What any request with a body may come to."""
WORK_ERRORS = (
    *BODY_ERRORS,
    ModelNotFoundError,
    QueueFullError,
    ModelUnavailableError,
    DrainingError,
    DeadlineError,
)
"""What any request that a worker is to answer may come to."""

_TEXT = {"type": "string"}
_MAYBE_TEXT = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {**_TEXT, "description": "For people: the value, the limit, the next step."},
                "type": {**_TEXT, "description": "The kind of error."},
                "param": {**_MAYBE_TEXT, "description": "Path of the field that is wrong, if one is."},
                "code": {**_MAYBE_TEXT, "description": "For programs: which error it is."},
            },
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}
_HEADERS = {
    "x-request-id": "Names the request in the server's log.",
    "request-id": "The same, where Anthropic's clients look for it.",
    "openai-processing-ms": "Milliseconds from the request's arrival to this response.",
}
_RETRY_HEADERS = {
    "retry-after": "Seconds to wait, 120 at most.",
    "retry-after-ms": "The same in milliseconds.",
}


def components() -> dict[str, Any]:
    """The document's `components`."""
    _, schemas = msgspec.json.schema_components(REPLIES, ref_template="#/components/schemas/{name}")
    headers = {
        name: {"description": text, "required": True, "schema": _TEXT}
        for name, text in (_HEADERS | _RETRY_HEADERS).items()
    }
    return {
        "schemas": {name: _as_sent(schema) for name, schema in schemas.items()} | {"Error": _ERROR},
        "headers": headers,
    }


def success(
    description: str,
    reply: type[msgspec.Struct],
    *,
    chunks: Sequence[type[msgspec.Struct]] = (),
    error: type[msgspec.Struct] | None = None,
) -> Responses:
    """A reply of this type; where it may be streamed, `chunks` are the types of an event's data."""
    content: dict[str, Any] = {"application/json": {"schema": _schema(reply.__name__)}}
    if chunks:
        content["text/event-stream"] = {"itemSchema": _event(chunks, error)}
    return _response(200, description, content)


def text(description: str, media_type: str) -> Responses:
    """A reply that is no JSON."""
    return _response(200, description, {media_type: {"schema": _TEXT}})


def errors(*kinds: type[ApiError], error: type[msgspec.Struct] | None = None) -> Responses:
    """The error object under the statuses of these errors, and under any other: OpenAI's, or of the type `error`."""
    by_status: dict[int, list[type[ApiError]]] = {}
    known: tuple[type[ApiError], ...] = (*kinds, ServerError)
    for kind in known:
        by_status.setdefault(kind.status, []).append(kind)
    content = {"application/json": {"schema": _schema(_error_name(error))}}
    told = _response("default", "Any other error.", content)
    for status, some in sorted(by_status.items()):
        description = " ".join((kind.__doc__ or "").partition("\n")[0] for kind in some)
        waits = any(issubclass(kind, OverloadedError) for kind in some)
        told |= _response(status, description, content, _RETRY_HEADERS if waits else {})
    return told


def _response(
    status: int | str, description: str, content: dict[str, Any], headers: dict[str, str] | None = None
) -> Responses:
    names = (*_HEADERS, *(headers or ()))
    referred = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    return {status: {"description": description, "headers": referred, "content": content}}


def _error_name(error: type[msgspec.Struct] | None) -> str:
    return "Error" if error is None else error.__name__


def _event(chunks: Sequence[type[msgspec.Struct]], error: type[msgspec.Struct] | None) -> dict[str, Any]:
    """Schema of a server-sent event, as OpenAPI 3.2 describes one, and FastAPI in its documents of today."""
    said = {"anyOf": [*(_schema(chunk.__name__) for chunk in chunks), _schema(_error_name(error))]}
    names = " or ".join(chunk.__name__ for chunk in chunks)
    data: dict[str, Any] = {**_TEXT, "contentMediaType": "application/json", "contentSchema": said}
    if error is None:
        data = {
            "description": f"{names}; at the end `[DONE]`, or an Error.",
            "anyOf": [{"const": "[DONE]"}, data],
        }
    else:
        data["description"] = f"{names}; where the stream fails, at the end a {error.__name__}."
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _as_sent(schema: dict[str, Any]) -> dict[str, Any]:
    """A struct's schema as a reader needs it: a field with a default is always sent, unless that is UNSET."""
    fields: dict[str, dict[str, Any]] = schema.get("properties", {})
    if not fields:
        return schema
    required = [name for name, field in fields.items() if name in schema["required"] or "default" in field]
    without_defaults = {
        name: {key: value for key, value in field.items() if key != "default"} for name, field in fields.items()
    }
    return schema | {"properties": without_defaults, "required": required}
