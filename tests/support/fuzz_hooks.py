"""What schemathesis needs to know of this server: the model that is there, and what a JSON schema cannot say of bodies.

Loaded by its command line (SCHEMATHESIS_HOOKS). Where a body conforms to the document, rules between its fields are
kept, so that it is served; the check takes no refusal but those whose reason no schema can tell.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis

from gateway.endpoint import EXAMPLE_MODEL
from gateway.protocol.response_create import LOGPROBS

UNSAID = {
    "context_length_exceeded",  # of the model
    "invalid_function_parameters",  # integers of more than 64 bits in a tool's schema
    "invalid_value",  # token ids beyond the model's vocabulary
    "previous_response_not_found",
    "array_above_max_length",  # prompts beyond what the model can run and queue
    "integer_above_max_value",  # `n` and `best_of` beyond the operator's limit, `min_tokens` beyond `max_tokens`
}
RULES = re.compile(
    r"Missing required parameter: '(tool_choice|messages\[\d+\]|response_format)\."  # what its type or role needs
    r"|Invalid type for 'messages\[\d+\]\.content': expected a string, but got null"
    r"|Unsupported parameter: 'messages\[\d+\]\.\w+' is read in '\w+' messages only"
    r"|Missing required parameter: 'prompt'"  # or `messages`
    r"|Invalid 'input': array too long\. \d+ prompts make"  # than can be queued
    r"|No tool call found for function call output"
)
"""Of parts of a body that need others."""

ABOUT_NO_MODEL = {"/v1/files", "/v1/batches"}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    if is_positive(case) and isinstance(case.body, dict) and case.path not in ABOUT_NO_MODEL:
        keep_rules(case.body)
        if case.path == "/v1/tokenize":
            keep_one_way(case.body)


def keep_rules(body: dict[str, Any]) -> None:
    if "model" in body:
        body["model"] = EXAMPLE_MODEL
    if body.get("max_tokens") == 0:
        body["max_tokens"] = 1  # 0 goes with `echo` only
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("logprobs") and LOGPROBS not in (body.get("include") or ()):
        body.pop("top_logprobs", None)
    if body.get("best_of") is not None:
        body["best_of"] = body.get("n") or 1
    if body.get("max_completion_tokens") is not None:
        body.pop("max_tokens", None)
    if isinstance(body.get("thinking"), dict):
        body["thinking"]["type"] = "disabled"  # the model that is there cannot think
    keep_rules_of_messages(body)
    keep_rules_of_forms(body)
    keep_rules_of_tools(body)
    keep_rules_of_items(body)


def keep_rules_of_messages(body: dict[str, Any]) -> None:
    """Each has what its role needs, and only that."""
    for message in body.get("messages") or ():
        if message["role"] == "tool":
            message["role"] = "user"  # there is no call that it could answer
        if message["role"] != "assistant":
            for name in ("tool_calls", "reasoning", "reasoning_content"):
                message.pop(name, None)
        for name in ("tool_call_id", "name", "reasoning_content"):
            message.pop(name, None)
        if message.get("content") is None and not message.get("tool_calls"):
            message["content"] = ""
    for name in ("continue_final_message", "add_generation_prompt"):
        body.pop(name, None)


def keep_one_way(body: dict[str, Any]) -> None:
    """A prompt or messages are tokenized, each with its own options."""
    is_prompt = body.get("messages") is None
    if is_prompt:
        body["prompt"] = body.get("prompt") or ""
    for name in ("messages", "tools", "chat_template_kwargs") if is_prompt else ("prompt", "add_special_tokens"):
        body.pop(name, None)


def keep_rules_of_forms(body: dict[str, Any]) -> None:
    response_format = body.get("response_format")
    if response_format and response_format["type"] == "json_schema":
        response_format["json_schema"] = {"name": "it"}
    elif response_format:
        response_format.pop("json_schema", None)


def keep_rules_of_tools(body: dict[str, Any]) -> None:
    """A choice is among tools; where it is an object, it goes with its type."""
    choice = body.get("tool_choice")
    if isinstance(choice, dict) or not body.get("tools"):
        body.pop("tool_choice", None)


def keep_rules_of_items(body: dict[str, Any]) -> None:
    """Nothing that was said before is kept, and no output comes without its call."""
    body.pop("previous_response_id", None)
    if isinstance(body.get("input"), list) and any(isinstance(item, dict) for item in body["input"]):
        said = [item for item in body["input"] if "role" in item or item.get("type") in ("function_call", "reasoning")]
        body["input"] = said or "hi"


@schemathesis.check
def what_conforms_is_served(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    if not is_positive(case) or response.status_code != 400:
        return
    error = response.json()["error"]
    code = code_of(error)
    if code in UNSAID or RULES.match(error["message"]) or is_whole_number_with_a_point(code, error["message"]):
        return
    raise AssertionError(f"the document allows what is refused: {error['message']}")


def code_of(error: dict[str, Any]) -> str | None:
    """Of OpenAI's object, or of Anthropic's."""
    code: str | None = error.get("details", error).get("error_code", error.get("code"))
    return code


def is_whole_number_with_a_point(code: str | None, message: str) -> bool:
    """1.0 is an integer to JSON schema, but none to OpenAI."""
    return code == "invalid_type" and "got a decimal" in message


@schemathesis.check
def errors_are_openais_or_anthropics(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    assert response.headers["x-request-id"] == response.headers["request-id"]
    if response.status_code < 400:
        return
    body = response.json()
    error = body["error"]
    if case.path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}
        assert set(error) - {"details"} == {"message", "type"}
        assert error["type"] not in {"api_error", "timeout_error"}, "no fault of the server's"
        return
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in {"invalid_request_error", "service_unavailable_error"}, "no fault of the server's"


def is_positive(case: schemathesis.Case[Any]) -> bool:
    return case.meta is None or case.meta.generation.mode.is_positive
