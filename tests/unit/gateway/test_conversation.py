"""Items of a conversation: as messages for a model, and as they are kept."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from gateway.conversation import chat_messages, items_to_keep, parse_items
from gateway.errors import InvalidRequestError
from gateway.response_ids import response_of
from model_registry.contract import ChatMessage, ToolCall

RESPONSE_ID = "resp_" + "a" * 32
USER: dict[str, Any] = {"role": "user", "content": "Is it raining in Oslo?"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]}
TEXT = {
    "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
    "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
}  # fmt: skip
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
LOOK = ToolCall("call_1", "look", "{}")


def messages(*items: dict[str, Any], instructions: str | None = None) -> tuple[ChatMessage, ...]:
    return chat_messages(instructions, parse_items(items))


def test_a_turn_of_an_assistant_is_one_message() -> None:
    assert messages(USER, REASONING, TEXT, CALL, OUTPUT) == (
        ChatMessage("user", "Is it raining in Oslo?"),
        ChatMessage("assistant", "I look.", reasoning="Look.", tool_calls=(LOOK,)),
        ChatMessage("tool", "rain", tool_call_id="call_1", name="look"),
    )


def test_calls_without_a_text_are_a_message_of_their_own() -> None:
    other = CALL | {"call_id": "call_2"}
    assert messages(USER, CALL, other)[1:] == (
        ChatMessage("assistant", "", tool_calls=(LOOK, ToolCall("call_2", "look", "{}"))),
    )


def test_two_texts_of_an_assistant_stay_two() -> None:
    assert [message.content for message in messages(USER, TEXT, TEXT)] == [USER["content"], "I look.", "I look."]


def test_instructions_come_first_and_a_developer_is_a_system() -> None:
    assert messages({"role": "developer", "content": "Be brief."}, USER, instructions="Be kind.")[:2] == (
        ChatMessage("system", "Be kind."),
        ChatMessage("system", "Be brief."),
    )


def test_text_parts_are_lines() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages({"role": "user", "content": parts})[0].content == "a\nb"
    assert messages(CALL, OUTPUT | {"output": parts})[-1].content == "a\nb"


def test_the_output_of_a_call_needs_the_call() -> None:
    with pytest.raises(InvalidRequestError, match="No tool call found for function call output with call_id call_1"):
        messages(USER, OUTPUT)


def test_what_is_kept_is_openais_full_form_and_comes_to_the_same_messages() -> None:
    items: list[dict[str, Any]] = [{"role": "assistant", "content": "Hello."}, USER, REASONING, TEXT, CALL, OUTPUT]
    kept = items_to_keep(parse_items(items), RESPONSE_ID)
    assert messages(*kept) == messages(*items)
    client: TypeAdapter[Any] = TypeAdapter(ResponseItem)
    for item in kept:
        client.validate_python(item)
    assert kept[1]["content"] == [{"type": "input_text", "text": USER["content"]}]


def test_a_kept_item_has_an_id_of_its_own_that_tells_the_response() -> None:
    kept = items_to_keep(parse_items([TEXT, TEXT, CALL]), RESPONSE_ID)
    ids = [item["id"] for item in kept]
    assert len({*ids, "msg_1", "fc_1"}) == 5
    assert {response_of(one) for one in ids} == {RESPONSE_ID}
    assert response_of("msg_1") is None
