"""Which error object a client gets, by the path that it asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.error_bodies import error_body, message_error
from gateway.errors import (
    ApiError,
    BodyTimeoutError,
    BodyTooLargeError,
    DeadlineError,
    DrainingError,
    InvalidRequestError,
    KeyMissingError,
    ModelNotFoundError,
    QueueFullError,
    ServerError,
)
from gateway.protocol.responses import encode


def sent(error: ApiError, path: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode(error_body(error, path, "req_1")))
    return decoded


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"])
def test_anthropics_paths_have_anthropics_object(path: str) -> None:
    assert sent(ModelNotFoundError("m"), path) == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "The model `m` does not exist or you do not have access to it.",
            "details": {"error_code": "model_not_found"},
        },
        "request_id": "req_1",
    }


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messagesX", "/"])
def test_all_other_paths_have_openais(path: str) -> None:
    assert sent(ServerError(), path) == ServerError().to_body()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("no"), "invalid_request_error"),
        (KeyMissingError(), "authentication_error"),
        (BodyTimeoutError(1), "invalid_request_error"),
        (BodyTooLargeError(1), "request_too_large"),
        (QueueFullError("full", retry_after_s=1), "rate_limit_error"),
        (DrainingError(), "overloaded_error"),
        (DeadlineError(1), "timeout_error"),
        (ServerError(), "api_error"),
    ],
)
def test_the_type_is_anthropics_for_the_status(error: ApiError, kind: str) -> None:
    assert message_error(error, "req_1").error.type == kind
