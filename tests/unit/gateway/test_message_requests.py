"""Bodies of /v1/messages: what is taken, what it comes to, and the name of what is refused."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from anthropic.types import (
    ContentBlockParam,
    ToolParam,
    message_count_tokens_params,
    message_create_params,
    tool_result_block_param,
)

from gateway.errors import InvalidRequestError
from gateway.protocol.message_blocks import KINDS, OTHER_KINDS
from gateway.protocol.message_create import CountTokensRequest, MessageRequest
from gateway.protocol.message_create import ToolParam as TakenTool
from gateway.tool_use import NO_TOOLS, ToolMode
from model_registry.contract import ChatMessage, ToolCall

BODY: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "öst"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "a tree"}
TOOL = {"name": "look", "input_schema": {"type": "object"}}
OF_HEADERS = {"user_profile_id", "workspace_id"}


def request(**fields: Any) -> MessageRequest:
    return MessageRequest.parse(json.dumps(BODY | fields).encode(), max_choices=8)


def said(role: str, *blocks: Any) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def text(of: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": of} | fields


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [said("user", *blocks)]}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": None}, "invalid_type", "max_tokens"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": [said("user")]}, "empty_array", "messages[0].content"),
        ({"messages": [{"role": "robot", "content": ""}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (user({"type": "image", "source": {"type": "url", "url": "x"}}), "unsupported_value",
         "messages[0].content[0].type"),
        (user({"type": "document"}), "unsupported_value", "messages[0].content[0].type"),
        (user({"type": "mistake"}), "invalid_value", "messages[0].content[0].type"),
        (user({"type": "text"}), "missing_required_parameter", "messages[0].content[0].text"),
        (user(text("a", citations=[{"type": "char_location"}])), "unsupported_parameter",
         "messages[0].content[0].citations"),
        (user(CALL), "invalid_value", "messages[0].content[0].type"),
        (user(RESULT), "invalid_value", "messages[0].content[0].tool_use_id"),
        ({"messages": [said("assistant", CALL), said("user", RESULT | {"content": [{"type": "image"}]})]},
         "unsupported_value", "messages[1].content[0].content[0].type"),
        ({"messages": [*BODY["messages"], said("assistant", CALL)]}, "invalid_value", "messages"),
        ({"messages": [*BODY["messages"], said("assistant", text(""))]}, "invalid_value", "messages"),
        ({"system": [{"type": "image"}]}, "unsupported_value", "system[0].type"),
        ({"temperature": 1.5}, "decimal_above_max_value", "temperature"),
        ({"top_p": -1}, "decimal_below_min_value", "top_p"),
        ({"top_k": -1}, "integer_below_min_value", "top_k"),
        ({"stop_sequences": [""]}, "empty_string", "stop_sequences[0]"),
        ({"stop_sequences": "a"}, "invalid_type", "stop_sequences"),
        ({"stop": "a"}, "unknown_parameter", "stop"),
        ({"min_p": 0.1}, "unknown_parameter", "min_p"),
        ({"metadata": {"user": "a"}}, "unknown_parameter", "metadata.user"),
        ({"thinking": {"type": "between_tools"}}, "unsupported_value", "thinking.type"),
        ({"thinking": {"type": "hard"}}, "invalid_value", "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "integer_below_min_value", "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "unsupported_parameter", "thinking.display"),
        ({"output_config": {"effort": "huge"}}, "invalid_value", "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "missing_required_parameter",
         "output_config.format.schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "unsupported_value", "tools[0].type"),
        ({"tools": [{"name": "look"}]}, "missing_required_parameter", "tools[0].input_schema"),
        ({"tools": [TOOL | {"input_schema": {"type": "string"}}]}, "invalid_function_parameters",
         "tools[0].input_schema"),
        ({"tools": [TOOL | {"name": "no spaces"}]}, "invalid_value", "tools[0].name"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "unsupported_parameter", "tools[0].defer_loading"),
        ({"tools": [TOOL, TOOL]}, "invalid_value", "tools[1].name"),
        ({"tool_choice": {"type": "any"}}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "maybe"}}, "invalid_value", "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "invalid_value", "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "look"}}, "invalid_value", "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "hear"}}, "invalid_value", "tool_choice.name"),
        ({"container": "c"}, "unsupported_parameter", "container"),
        ({"diagnostics": {"previous_message_id": "msg_1"}}, "unsupported_parameter", "diagnostics"),
        ({"inference_geo": "eu"}, "unsupported_parameter", "inference_geo"),
        ({"speed": "fast"}, "unsupported_parameter", "speed"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_every_field_of_the_client_is_known() -> None:
    """Honoured, without effect, or refused by its name: none of them is called unknown."""
    for params, taken in (
        (message_create_params.MessageCreateParamsStreaming, MessageRequest),
        (message_count_tokens_params.MessageCountTokensParams, CountTokensRequest),
    ):
        fields = set(typing.get_type_hints(params)) - OF_HEADERS
        assert fields - {*taken.model_fields, *taken.without_effect} == set()
    assert set(typing.get_type_hints(ToolParam)) - set(TakenTool.model_fields) == set()


@pytest.mark.parametrize("union", [ContentBlockParam, tool_result_block_param.Content])
def test_every_kind_of_block_of_the_client_is_known(union: Any) -> None:
    kinds = {typing.get_args(typing.get_type_hints(one)["type"])[0] for one in typing.get_args(union)}
    assert kinds - {*KINDS, *OTHER_KINDS} == set()


def test_what_changes_nothing_is_taken() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    taken = request(
        service_tier="auto", speed="standard", thinking={"type": "adaptive", "display": "summarized"}, **cached,
        system=[text("Be brief.", **cached)], tools=[TOOL | cached | {"type": "custom", "eager_input_streaming": True}],
        messages=[
            said("user", text("hi", citations=None)),
            said("assistant", CALL | cached | {"caller": {"type": "direct"}}),
            said("user", RESULT | cached),
        ],
    )  # fmt: skip
    assert taken.template_kwargs == {}


def test_blocks_come_to_one_message_for_each_turn() -> None:
    taken = request(
        system=[text("Be brief."), text("Be kind.")],
        messages=[
            {"role": "user", "content": "Hello."},
            said("user", text("What do you see?")),
            said("assistant", {"type": "thinking", "thinking": "look", "signature": "s"}, text("Wait.")),
            said("assistant", CALL, CALL | {"id": "toolu_2"}),
            said(
                "user", RESULT | {"tool_use_id": "toolu_2"}, RESULT | {"content": [text("a"), text("b")]}, text("So?")
            ),
            {"role": "system", "content": "Hurry."},
        ],
    )
    calls = tuple(ToolCall(name, "look", '{"where": "öst"}') for name in ("toolu_1", "toolu_2"))
    assert taken.conversation == (
        ChatMessage("system", "Be brief.\nBe kind."),
        ChatMessage("user", "Hello.\nWhat do you see?"),
        ChatMessage("assistant", "Wait.", reasoning="look", tool_calls=calls),
        ChatMessage("tool", "a tree", tool_call_id="toolu_2", name="look"),
        ChatMessage("tool", "a\nb", tool_call_id="toolu_1", name="look"),
        ChatMessage("user", "So?"),
        ChatMessage("system", "Hurry."),
    )
    assert not taken.continues_final_message


def test_a_result_that_is_an_error_says_so_and_one_may_be_empty() -> None:
    failed = RESULT | {"is_error": True}
    nothing = {"type": "tool_result", "tool_use_id": "toolu_1"}
    taken = request(messages=[said("assistant", CALL), said("user", failed, nothing)])
    assert [message.content for message in taken.conversation[1:]] == ["Error: a tree", ""]


def test_a_last_message_of_an_assistant_is_gone_on_with() -> None:
    taken = request(messages=[*BODY["messages"], {"role": "assistant", "content": "It is"}])
    assert taken.continues_final_message
    assert taken.conversation[-1] == ChatMessage("assistant", "It is")


@pytest.mark.parametrize(
    ("choice", "mode", "callable_", "parallel"),
    [
        (None, ToolMode.AUTO, ["look", "hear"], True),
        ({"type": "auto"}, ToolMode.AUTO, ["look", "hear"], True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolMode.AUTO, ["look", "hear"], False),
        ({"type": "any"}, ToolMode.REQUIRED, ["look", "hear"], True),
        ({"type": "tool", "name": "hear"}, ToolMode.NAMED, ["hear"], False),
    ],
)
def test_tools_and_choice_come_to_what_they_do_in_a_chat(
    choice: Any, mode: ToolMode, callable_: list[str], parallel: bool
) -> None:
    use = request(tools=[TOOL | {"strict": True}, TOOL | {"name": "hear"}], tool_choice=choice).tool_use
    assert (use.mode, [tool.name for tool in use.callable], use.parallel) == (mode, callable_, parallel)
    assert [(tool.name, tool.strict) for tool in use.tools] == [("look", True), ("hear", False)]


def test_tools_that_may_not_be_called_are_not_told_of() -> None:
    assert request(tools=[TOOL], tool_choice={"type": "none"}).tool_use == NO_TOOLS
    assert request(tool_choice={"type": "auto"}).tool_use == NO_TOOLS


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ],
)
def test_thinking_is_a_variable_of_the_chat_template(fields: dict[str, Any], variables: dict[str, Any]) -> None:
    assert request(**fields).template_kwargs == variables


def test_sampling_is_said_in_the_words_of_all_endpoints() -> None:
    sampling = request(temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["a", "b"]).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stops) == (0.5, 0.9, 7, ("a", "b"))


def test_the_user_is_the_session() -> None:
    assert request(metadata={"user_id": "ann"}).session == "ann"
    assert request().session is None


def test_the_text_may_have_to_fit_a_schema() -> None:
    schema = {"type": "object"}
    taken = request(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(taken.schema_text or "") == schema


def test_the_schema_of_a_body_names_every_field_and_stands_alone() -> None:
    schema = json.dumps(MessageRequest.body_schema())
    assert "$ref" not in schema
    assert "Unread" not in schema
