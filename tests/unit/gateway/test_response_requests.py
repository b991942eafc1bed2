"""Bodies and queries of /v1/responses: what is taken, and OpenAI's code and path for what is not.

What becomes of each of the client's fields is in test_field_tables.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.protocol.response_create import ResponseRequest
from gateway.protocol.response_items import ItemReference, Message
from gateway.protocol.response_queries import ItemListQuery, RetrieveQuery

BODY: dict[str, Any] = {"model": "m", "input": "hi"}
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}


def request(**fields: Any) -> ResponseRequest:
    return ResponseRequest.parse(json.dumps(BODY | fields).encode(), max_choices=8)


def user(content: Any, **fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} | fields]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "invalid_type", "input"),
        ({"input": 7}, "invalid_type", "input"),
        ({"input": []}, "empty_array", "input"),
        ({"input": ["hi"]}, "invalid_type", "input[0]"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
        ({"input": [{"content": "hi"}]}, "missing_required_parameter", "input[0].role"),
        ({"input": [{"role": "tool", "content": ""}]}, "invalid_value", "input[0].role"),
        ({"input": [{"type": "web_search_call"}]}, "unsupported_value", "input[0].type"),
        ({"input": [{"type": "mistake"}]}, "invalid_value", "input[0].type"),
        ({"input": [{"type": 7}]}, "invalid_type", "input[0].type"),
        ({"input": user("hi", mood="good")}, "unknown_parameter", "input[0].mood"),
        ({"input": user("hi", phase="commentary")}, "unsupported_parameter", "input[0].phase"),
        ({"input": user([{"type": "input_image"}])}, "unsupported_value", "input[0].content[0].type"),
        ({"input": user([{"type": "text", "text": ""}])}, "invalid_value", "input[0].content[0].type"),
        ({"input": user([{"type": "input_text"}])}, "missing_required_parameter", "input[0].content[0].text"),
        ({"input": [CALL | {"async": True}]}, "unsupported_parameter", "input[0].async"),
        ({"input": [CALL | {"arguments": {}}]}, "invalid_type", "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "missing_required_parameter", "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "unsupported_parameter",
         "input[0].encrypted_content"),
        ({"input": [{"id": "msg_1"}] * 1025}, "invalid_value", "input"),
        ({"max_output_tokens": 0}, "integer_below_min_value", "max_output_tokens"),
        ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
        ({"n": 2}, "unknown_parameter", "n"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"store": "yes"}, "invalid_type", "store"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "string_above_max_length", "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "object_above_max_properties", "metadata"),
        ({"include": ["everything"]}, "invalid_value", "include[0]"),
        ({"top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "unknown_parameter",
         "stream_options.include_usage"),
        ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "missing_required_parameter",
         "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"title": "x" * 2**17}}}},
         "string_above_max_length", "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
        ({"reasoning": {"effort": "huge"}}, "invalid_value", "reasoning.effort"),
        ({"tools": [TOOL | {"parameters": {"type": "string"}}]}, "invalid_function_parameters", "tools[0].parameters"),
        ({"reasoning": {"summary": "detailed"}}, "unsupported_parameter", "reasoning.summary"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_value", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "invalid_value", "tools[1].name"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "perhaps"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "mcp"}}, "unsupported_value", "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "hear"}}, "invalid_value", "tool_choice.name"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_openais_code(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_every_field_may_be_null_but_model_and_input() -> None:
    optional = set(ResponseRequest.model_fields) - {"model", "input"}
    assert request(**dict.fromkeys(optional)) == request()


def test_what_changes_nothing_is_taken() -> None:
    request(
        background=False, context_management=[], include=["reasoning.encrypted_content"], moderation={"model": "m"},
        parallel_tool_calls=True, reasoning={"effort": "none", "summary": "auto"}, service_tier="flex",
        text={"format": {"type": "text"}, "verbosity": "medium"}, tool_choice="auto", tools=[], truncation="disabled",
    )  # fmt: skip


def test_a_text_is_one_message_of_a_user() -> None:
    assert request(input="hi").items == [Message(role="user", content="hi")]


@pytest.mark.parametrize("reference", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_a_reference_may_leave_out_its_type(reference: dict[str, Any]) -> None:
    [item] = request(input=[reference]).items
    assert isinstance(item, ItemReference)
    assert item.id == "msg_1"


@pytest.mark.parametrize(
    ("choice", "mode", "told"),
    [
        (None, "auto", 2),
        ("none", "none", 0),
        ("required", "required", 2),
        ({"type": "function", "name": "hear"}, "named", 2),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]}, "required", 1),
    ],
)
def test_tools_and_choice_come_to_what_they_do_in_a_chat(choice: Any, mode: str, told: int) -> None:
    use = request(tools=[TOOL, TOOL | {"name": "hear"}], tool_choice=choice, parallel_tool_calls=False).tool_use
    assert (use.mode, len(use.tools), use.parallel) == (mode, told, mode == "none")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (None, ["look", "hear"]),
        ("required", ["look", "hear"]),
        ({"type": "function", "name": "hear"}, ["hear"]),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}, ["look"]),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": n} for n in ("hear", "look")],
            },
            ["look", "hear"],
        ),
    ],
)
def test_a_tool_choice_leaves_some_of_the_tools(choice: Any, names: list[str]) -> None:
    use = request(tools=[TOOL, TOOL | {"name": "hear"}], tool_choice=choice).tool_use
    assert [tool.name for tool in use.callable] == names


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
    ],
)
def test_logprobs_are_asked_for_in_include(fields: dict[str, Any], num_logprobs: int | None) -> None:
    assert request(**fields).num_logprobs == num_logprobs


def test_the_schema_of_a_body_names_every_field_and_stands_alone() -> None:
    schema = ResponseRequest.body_schema()
    assert {"input", "text", "store", "service_tier"} <= set(schema["properties"])
    assert "$ref" not in json.dumps(schema)


def test_a_list_of_items_is_asked_for_in_the_url() -> None:
    query = ItemListQuery.parse([("limit", "5"), ("order", "asc"), ("include[]", "reasoning.encrypted_content")])
    assert (query.limit, query.order, query.after) == (5, "asc", None)
    assert (ItemListQuery.parse([]).limit, ItemListQuery.parse([]).order) == (20, "desc")


@pytest.mark.parametrize(
    ("pair", "code", "param"),
    [
        (("limit", "0"), "integer_below_min_value", "limit"),
        (("limit", "101"), "integer_above_max_value", "limit"),
        (("limit", "ten"), "invalid_value", "limit"),
        (("order", "up"), "invalid_value", "order"),
        (("page", "2"), "unknown_parameter", "page"),
        (("include", "everything"), "invalid_value", "include[0]"),
    ],
)
def test_a_wrong_query_is_named(pair: tuple[str, str], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ItemListQuery.parse([pair])
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_response_is_not_streamed_a_second_time() -> None:
    RetrieveQuery.parse([("stream", "false")])
    with pytest.raises(InvalidRequestError) as caught:
        RetrieveQuery.parse([("stream", "true")])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "stream")
