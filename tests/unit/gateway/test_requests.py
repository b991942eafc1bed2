"""Request bodies: what is taken, and OpenAI's code and path for what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.protocol.chat import ChatCompletionRequest
from gateway.protocol.completions import CompletionRequest
from gateway.protocol.fields import NO_EFFECT
from model_registry.contract import ChatMessage

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse(json.dumps(CHAT | fields).encode(), max_choices=8)


def text(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps(TEXT | fields).encode(), max_choices=8)


def user(content: Any, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} | fields]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": 1}, "invalid_type", "model"),
        ({"model": None}, "invalid_type", "model"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "function", "content": "hi"}]}, "unsupported_value", "messages[0].role"),
        ({"messages": user(None)}, "invalid_type", "messages[0].content"),
        ({"messages": user([{"type": "image_url"}])}, "unsupported_value", "messages[0].content[0].type"),
        ({"messages": user([{"type": "text"}])}, "missing_required_parameter", "messages[0].content[0].text"),
        ({"messages": user("hi", name=7)}, "invalid_type", "messages[0].name"),
        ({"messages": user("hi", mood="good")}, "unknown_parameter", "messages[0].mood"),
        ({"<b>": 1}, "unknown_parameter", "<b>"),
        ({"<text>": 1}, "unknown_parameter", "<text>"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": True}, "invalid_type", "temperature"),
        ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ({"temperature": -1}, "decimal_below_min_value", "temperature"),
        ({"top_p": 1.5}, "decimal_above_max_value", "top_p"),
        ({"top_k": -2}, "integer_below_min_value", "top_k"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": 2**31}, "integer_above_max_value", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "invalid_value", "max_completion_tokens"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 9}, "integer_above_max_value", "n"),
        ({"n": True}, "invalid_type", "n"),
        ({"seed": 2**63}, "integer_above_max_value", "seed"),
        ({"stop": ""}, "empty_string", "stop"),
        ({"stop": 7}, "invalid_type", "stop"),
        ({"stop": ["a", ""]}, "empty_string", "stop[1]"),
        ({"stop": ["a"] * 17}, "array_above_max_length", "stop"),
        ({"stop": ["a" * 257]}, "string_above_max_length", "stop[0]"),
        ({"presence_penalty": 3}, "decimal_above_max_value", "presence_penalty"),
        ({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream": True, "stream_options": {"usage": True}}, "unknown_parameter", "stream_options.usage"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"response_format": "json"}, "invalid_type", "response_format"),
        ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "x"}}},
            "invalid_value",
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "json_object", "x": 1}}, "unknown_parameter", "response_format.x"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
            "invalid_type",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"x": "y" * 131072}}}},
            "string_above_max_length",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "invalid_value",
            "structured_outputs",
        ),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "empty_string", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "empty_array", "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "empty_string", "structured_outputs.choice[1]"),
        ({"structured_outputs": {"json": 5}}, "invalid_type", "structured_outputs.json"),
        ({"structured_outputs": {"json": "[" * 20_000}}, "invalid_value", "structured_outputs.json"),
        ({"structured_outputs": {"json": "true"}}, "invalid_value", "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"a": NaN}'}}, "invalid_value", "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["x" * 131073]}}, "string_above_max_length", "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "unsupported_parameter", "structured_outputs.structural_tag"),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"function_call": {"name": "f"}}, "unsupported_parameter", "function_call"),
        ({"reasoning_effort": "huge"}, "invalid_value", "reasoning_effort"),
        ({"chat_template_kwargs": []}, "invalid_type", "chat_template_kwargs"),
        ({"logit_bias": {"5": 101}}, "decimal_above_max_value", "logit_bias.5"),
        ({"logit_bias": {"5": "high"}}, "invalid_type", "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"05": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": [5]}, "invalid_type", "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "object_above_max_properties", "logit_bias"),
        ({"min_p": 1.1}, "decimal_above_max_value", "min_p"),
        ({"min_p": -0.1}, "decimal_below_min_value", "min_p"),
        ({"stop_token_ids": [-1]}, "integer_below_min_value", "stop_token_ids[0]"),
        ({"stop_token_ids": [1, "2"]}, "invalid_type", "stop_token_ids[1]"),
        ({"stop_token_ids": 5}, "invalid_type", "stop_token_ids"),
        ({"stop_token_ids": [5] * 65}, "array_above_max_length", "stop_token_ids"),
        ({"logprobs": 1}, "invalid_type", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "integer_below_min_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "invalid_type", "top_logprobs"),
        ({"top_logprobs": 5}, None, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 5}, None, "top_logprobs"),
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"user": 7}, "invalid_type", "user"),
        ({"prompt_cache_key": ["a"]}, "invalid_type", "prompt_cache_key"),
    ],
)
def test_a_wrong_field_of_a_chat_is_named_with_openais_code(
    fields: dict[str, Any], code: str | None, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    error = caught.value
    assert (error.status, error.type, error.code, error.param) == (400, "invalid_request_error", code, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": 7}, "invalid_type", "prompt"),
        ({"prompt": {}}, "invalid_type", "prompt"),
        ({"prompt": []}, "empty_array", "prompt"),
        ({"prompt": [[1], []]}, "empty_array", "prompt"),
        ({"prompt": ["a", 2]}, "invalid_type", "prompt"),
        ({"prompt": [1, "a"]}, "invalid_type", "prompt"),
        ({"prompt": [[1], 2]}, "invalid_type", "prompt"),
        ({"prompt": [[1], "a"]}, "invalid_type", "prompt"),
        ({"prompt": [1, True]}, "invalid_type", "prompt"),
        ({"prompt": [True]}, "invalid_type", "prompt"),
        ({"prompt": [1.5]}, "invalid_type", "prompt"),
        ({"prompt": [None]}, "invalid_type", "prompt"),
        ({"prompt": [[1, -1]]}, "invalid_value", "prompt"),
        ({"prompt": [2**31]}, "invalid_value", "prompt"),
        ({"best_of": 0}, "integer_below_min_value", "best_of"),
        ({"best_of": 9}, "integer_above_max_value", "best_of"),
        ({"best_of": 1, "n": 2}, "integer_below_min_value", "best_of"),
        ({"best_of": 3, "n": 2, "stream": True}, "invalid_value", "best_of"),
        ({"echo": 1}, "invalid_type", "echo"),
        ({"echo": True, "use_prompt_format": True}, "invalid_value", "echo"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "integer_below_min_value", "max_tokens"),
        ({"logprobs": 6}, "integer_above_max_value", "logprobs"),
        ({"logprobs": -1}, "integer_below_min_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"top_logprobs": 1}, "unknown_parameter", "top_logprobs"),
        ({"suffix": 7}, "invalid_type", "suffix"),
        ({"suffix": "x", "prompt": [1, 2]}, "invalid_value", "suffix"),
        ({"suffix": "x", "echo": True}, "invalid_value", "suffix"),
        ({"suffix": "x", "use_prompt_format": True}, "invalid_value", "suffix"),
        ({"messages": []}, "unknown_parameter", "messages"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named_with_openais_code(
    fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        text(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_field_is_named(missing: str) -> None:
    body = json.dumps({name: value for name, value in CHAT.items() if name != missing}).encode()
    with pytest.raises(InvalidRequestError) as caught:
        ChatCompletionRequest.parse(body, max_choices=8)
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", missing)


def test_the_message_says_what_was_expected_and_what_came() -> None:
    with pytest.raises(InvalidRequestError, match="expected a decimal, but got a string instead"):
        chat(temperature="hot")
    with pytest.raises(InvalidRequestError, match="Expected a value <= 2, but got 3 instead"):
        chat(temperature=3)


def test_fields_that_only_steer_openais_service_are_taken_whatever_they_hold() -> None:
    assert chat(**{name: {"any": ["thing"]} for name in NO_EFFECT}).model == "m"
    assert text(**dict.fromkeys(NO_EFFECT, 7)).model == "m"


def test_later_fields_are_taken_where_they_change_nothing() -> None:
    chat(
        logprobs=False, top_logprobs=0, tools=[], tool_choice="none", response_format={"type": "text"},
        functions=[], modalities=["text"], parallel_tool_calls=True, prediction=None,
    )  # fmt: skip
    text(echo=False, suffix=None)
    text(best_of=2, n=2, stream=True)


def test_every_field_may_be_null_but_model_and_prompt() -> None:
    optional = set(ChatCompletionRequest.model_fields) - {"model", "messages"}
    assert chat(**dict.fromkeys(optional)) == chat()


def test_an_assistants_reply_can_be_sent_back_as_it_came() -> None:
    reply = {
        "role": "assistant", "content": "yes", "refusal": None, "annotations": None, "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    assert chat(messages=[reply]).messages[0].text == "yes"


@pytest.mark.parametrize(("name", "known"), [("Ann", "Ann"), ("", ""), (None, "")])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_who_speaks_may_have_a_name(role: str, name: str | None, known: str) -> None:
    message = {"role": role, "content": "hi", "name": name}
    assert chat(messages=[message]).conversation == (ChatMessage(role, "hi", name=known),)


def test_text_parts_are_lines_of_one_content() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=user(parts)).messages[0].text == "a\nb"


@pytest.mark.parametrize(
    ("fields", "session"),
    [
        ({}, None),
        ({"user": "Ann"}, "Ann"),
        ({"user": "Ann", "prompt_cache_key": "terms"}, "terms"),
        ({"user": "Ann", "prompt_cache_key": ""}, "Ann"),
    ],
)
def test_a_session_is_named_by_its_cache_key_or_else_its_user(fields: dict[str, Any], session: str | None) -> None:
    assert chat(**fields).session == text(**fields).session == session


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_a_chat_says_in_two_fields_which_logprobs_it_wants(fields: dict[str, Any], num_logprobs: int | None) -> None:
    assert chat(**fields).num_logprobs == num_logprobs


@pytest.mark.parametrize(("stop", "stops"), [(None, ()), ([], ()), ("x", ("x",)), (["x", "y"], ("x", "y"))])
def test_stop_takes_null_a_string_or_a_list(stop: Any, stops: tuple[str, ...]) -> None:
    assert chat(stop=stop).stops == stops


def test_the_schema_of_a_body_names_every_field_and_stands_alone() -> None:
    schema = ChatCompletionRequest.body_schema()
    assert set(NO_EFFECT) <= set(schema["properties"])
    assert "$ref" not in json.dumps(schema)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (["a", ""], ("a", "")),
        ([1, 0], ((1, 0),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, prompts: tuple[Any, ...]) -> None:
    assert text(prompt=prompt).prompt == prompts


def test_a_wrong_prompt_among_several_is_pointed_at() -> None:
    with pytest.raises(InvalidRequestError, match=r"'prompt\[2\]\[1\]': expected .* but got a string instead"):
        text(prompt=[[1], [2], [3, "4"]])
    with pytest.raises(InvalidRequestError, match=r"'prompt\[1\]': empty array"):
        text(prompt=[[1], []])


def test_the_documents_schema_of_a_prompt_has_the_four_forms() -> None:
    schema = CompletionRequest.body_schema()["properties"]["prompt"]
    assert [one["type"] for one in schema["anyOf"]] == ["string", "array", "array", "array"]
    assert "type" not in schema
