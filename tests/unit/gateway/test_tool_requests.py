"""Tools, tool messages, reasoning and template variables in a chat's body: what they come to, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.protocol.chat import ChatCompletionRequest
from gateway.tool_use import Tool, ToolMode
from model_registry.contract import ChatMessage, ToolCall

USER: dict[str, Any] = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [USER]} | fields
    return ChatCompletionRequest.parse(json.dumps(body).encode(), max_choices=8)


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | function}


def called(*ids: str, name: str = "weather", **message: Any) -> dict[str, Any]:
    calls = [{"id": one, "type": "function", "function": {"name": name, "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls} | message


def result(call_id: str, **message: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "sunny"} | message


ONE_OF_TWO = {"type": "function", "function": {"name": "time"}}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": [{}]}, "missing_required_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "unsupported_value", "tools[0].type"),
        ({"tools": [tool(), {"type": "function", "function": {}}]}, "missing_required_parameter",
         "tools[1].function.name"),
        ({"tools": [tool("")]}, "empty_string", "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [tool("ä")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [tool("a\n")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "string_above_max_length", "tools[0].function.name"),
        ({"tools": [tool(), tool()]}, "invalid_value", "tools[1].function.name"),
        ({"tools": [tool(f"f{n}") for n in range(129)]}, "array_above_max_length", "tools"),
        ({"tools": [tool(parameters=[])]}, "invalid_type", "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "invalid_function_parameters",
         "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"properties": {"a": {"enum": [1, 2**63]}}})]}, "invalid_function_parameters",
         "tools[0].function.parameters"),
        ({"tools": [tool(strict="yes")]}, "invalid_type", "tools[0].function.strict"),
        ({"tools": [tool(colour="red")]}, "unknown_parameter", "tools[0].function.colour"),
        ({"tools": [tool()], "tool_choice": "maybe"}, "invalid_value", "tool_choice"),
        ({"tools": [tool()], "tool_choice": 7}, "invalid_type", "tool_choice"),
        ({"tools": [tool()], "tool_choice": {}}, "missing_required_parameter", "tool_choice.type"),
        ({"tools": [tool()], "tool_choice": {"type": "custom"}}, "unsupported_value", "tool_choice.type"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "missing_required_parameter",
         "tool_choice.function"),
        ({"tools": [tool()], "tool_choice": ONE_OF_TWO}, "invalid_value", "tool_choice.function.name"),
        ({"tool_choice": ONE_OF_TWO}, "invalid_value", "tool_choice"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "empty_array", "tool_choice.allowed_tools.tools"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [ONE_OF_TWO]}}}, "invalid_value",
         "tool_choice.allowed_tools.tools[0].function.name"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "none", "tools": [tool()]}}}, "invalid_value", "tool_choice.allowed_tools.mode"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools", "function": {"name": "weather"},
          "allowed_tools": {"mode": "auto", "tools": [tool()]}}}, "invalid_value", "tool_choice.function"),
        ({"messages": [{"role": "assistant"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "invalid_type", "messages[0].content"),
        ({"messages": [called()]}, "invalid_type", "messages[0].content"),
        ({"messages": [USER | {"tool_calls": called("a")["tool_calls"]}]}, "unsupported_parameter",
         "messages[0].tool_calls"),
        ({"messages": [USER | {"tool_call_id": "a"}]}, "unsupported_parameter", "messages[0].tool_call_id"),
        ({"messages": [USER | {"reasoning": "hm"}]}, "unsupported_parameter", "messages[0].reasoning"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "missing_required_parameter", "messages[0].tool_call_id"),
        ({"messages": [called("a"), result("b")]}, "invalid_value", "messages[1].tool_call_id"),
        ({"messages": [result("a"), called("a")]}, "invalid_value", "messages[0].tool_call_id"),
        ({"messages": [called("a"), result("a", name="time")]}, "invalid_value", "messages[1].name"),
        ({"messages": [called("a"), result("a", content=None)]}, "invalid_type", "messages[1].content"),
        ({"messages": [called("a") | {"tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}]},
         "missing_required_parameter", "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [{"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}]},
         "invalid_value", "messages[0].reasoning_content"),
        ({"continue_final_message": True}, "invalid_value", "continue_final_message"),
        ({"continue_final_message": True, "messages": [called("a")]}, "invalid_value", "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True,
          "messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", "add_generation_prompt"),
        ({"add_generation_prompt": False}, "invalid_value", "add_generation_prompt"),
        ({"chat_template_kwargs": {"messages": 1}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": True}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"__class__": 1}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"thinking": {"a": 1}}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"thinking": 2**64}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {"thinking": "x" * 257}}, "invalid_value", "chat_template_kwargs"),
        ({"chat_template_kwargs": {f"v{n}": 1 for n in range(17)}}, "object_above_max_properties",
         "chat_template_kwargs"),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"}, "invalid_value",
         "reasoning_effort"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_path_and_openais_code(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert param in caught.value.message


def test_tools_are_what_the_client_says_of_them() -> None:
    use = chat(tools=[tool(description="of a city", parameters=SCHEMA, strict=True), tool("time")]).tool_use
    assert use.mode is ToolMode.AUTO
    assert use.tools == use.callable == (Tool("weather", "of a city", SCHEMA, strict=True), Tool("time"))
    assert use.parallel
    assert use.tools[1].as_dict()["function"]["parameters"]["properties"] == {}


def test_the_choice_says_whether_and_what_may_be_called() -> None:
    tools = [tool(), tool("time")]
    assert not chat(tools=tools, tool_choice="none").tool_use.tools
    assert chat(tools=tools, tool_choice="required", parallel_tool_calls=False).tool_use.mode is ToolMode.REQUIRED
    named = chat(tools=tools, tool_choice=ONE_OF_TWO).tool_use
    assert (named.mode, sorted(named.names), len(named.tools)) == (ToolMode.NAMED, ["time"], 2)
    assert not named.parallel
    allowed_tools = {"mode": "required", "tools": [ONE_OF_TWO, ONE_OF_TWO]}
    allowed = chat(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed_tools}).tool_use
    assert (allowed.mode, [one.name for one in allowed.tools]) == (ToolMode.REQUIRED, ["time"])
    assert not chat(tools=tools, parallel_tool_calls=False).tool_use.parallel


@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_without_tools_a_choice_that_asks_for_none_is_taken(choice: str | None) -> None:
    assert not chat(tool_choice=choice, tools=[], parallel_tool_calls=True).tool_use


def test_calls_and_their_results_are_part_of_the_conversation() -> None:
    messages = [USER, called("a", "b", reasoning="hm"), result("b"), result("a", name="weather")]
    conversation = chat(messages=messages).conversation
    assert conversation[1] == ChatMessage(
        "assistant", "", "hm", (ToolCall("a", "weather", "{}"), ToolCall("b", "weather", "{}"))
    )
    assert conversation[2] == ChatMessage("tool", "sunny", tool_call_id="b", name="weather")


def test_a_developer_is_the_system() -> None:
    assert chat(messages=[{"role": "developer", "content": "be brief"}]).conversation[0].role == "system"


def test_a_reply_with_calls_can_be_sent_back_as_it_came() -> None:
    reply = called("a", refusal=None, annotations=None, audio=None, function_call=None, reasoning="hm",
                   reasoning_content="hm")  # fmt: skip
    reply["tool_calls"][0]["index"] = 0
    assert chat(messages=[reply]).conversation[0].reasoning == "hm"


def test_the_effort_is_a_variable_of_the_template() -> None:
    request = chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": True, "reasoning_effort": "low"})
    assert request.template_kwargs == {"enable_thinking": True, "reasoning_effort": "low"}


def test_the_last_message_of_an_assistant_may_be_gone_on_with() -> None:
    messages = [USER, {"role": "assistant", "content": "well"}]
    assert chat(messages=messages, continue_final_message=True, add_generation_prompt=False).continue_final_message
    assert chat(messages=messages, continue_final_message=True).continue_final_message
