"""What schemathesis needs to know of this server: the model that is there, and what a JSON schema cannot say of bodies.

Loaded by its command line (SCHEMATHESIS_HOOKS). Where a body conforms to the document, rules between its fields are
kept, so that it is served; the check takes no refusal but those whose reason no schema can tell.
"""

from __future__ import annotations

from typing import Any

import schemathesis

from gateway.endpoint import EXAMPLE_MODEL

UNSAID = {
    "context_length_exceeded",  # of the model
    "invalid_value",  # token ids beyond the model's vocabulary
    "integer_above_max_value",  # `n` and `best_of` beyond the operator's limit, `min_tokens` beyond `max_tokens`
}

ABOUT_NO_MODEL = {"/v1/files", "/v1/batches"}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    if is_positive(case) and isinstance(case.body, dict) and case.path not in ABOUT_NO_MODEL:
        keep_rules(case.body)


def keep_rules(body: dict[str, Any]) -> None:
    body["model"] = EXAMPLE_MODEL
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if body.get("best_of") is not None:
        body["best_of"] = body.get("n") or 1
    if body.get("max_completion_tokens") is not None:
        body.pop("max_tokens", None)


@schemathesis.check
def what_conforms_is_served(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    if not is_positive(case) or response.status_code != 400:
        return
    error = response.json()["error"]
    if error["code"] in UNSAID or is_whole_number_with_a_point(error):
        return
    raise AssertionError(f"the document allows what is refused: {error['message']}")


def is_whole_number_with_a_point(error: dict[str, Any]) -> bool:
    """1.0 is an integer to JSON schema, but none to OpenAI."""
    return error["code"] == "invalid_type" and "got a decimal" in error["message"]


@schemathesis.check
def errors_are_openais(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    assert response.headers["x-request-id"]
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] in {"invalid_request_error", "service_unavailable_error"}, "no fault of the server's"


def is_positive(case: schemathesis.Case[Any]) -> bool:
    return case.meta is None or case.meta.generation.mode.is_positive
