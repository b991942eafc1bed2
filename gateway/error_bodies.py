"""Which error object a client gets: OpenAI's, or, on the paths that are Anthropic's, Anthropic's. Pure.

The HTTP status is the error's own either way.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET

from gateway.errors import ApiError
from gateway.protocol.message_objects import MessageError, MessageErrorDetails, MessageErrorObject

ANTHROPIC_PATH: Final = "/v1/messages"
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's, by status; all other faults of a client are an `invalid_request_error`."""


def error_body(error: ApiError, path: str, request_id: str) -> msgspec.Struct | dict[str, Any]:
    """The JSON body of the error's response to a request of this path."""
    is_anthropics = path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/")
    return message_error(error, request_id) if is_anthropics else error.to_body()


def message_error(error: ApiError, request_id: str) -> MessageError:
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    details = UNSET if error.code is None else MessageErrorDetails(error.code)
    return MessageError(
        error=MessageErrorObject(type=kind, message=error.message, details=details), request_id=request_id
    )
