"""Items of a conversation: as messages for a model, and as they are kept."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from gateway.conversation import chat_messages, items_in_full, items_to_keep, parse_items
from gateway.errors import InvalidRequestError
from gateway.protocol.response_items import FunctionCall
from gateway.protocol.responses import encode
from gateway.response_ids import ItemPlace, place_of
from model_registry.contract import ChatMessage, ToolCall

RESPONSE_ID = "resp_" + "a" * 32
USER: dict[str, Any] = {"role": "user", "content": "Is it raining in Oslo?"}
REASONING: dict[str, Any] = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "Look."}],
}
TEXT: dict[str, Any] = {
    "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
    "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}],
}  # fmt: skip
CALL: dict[str, Any] = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"}
OUTPUT: dict[str, Any] = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
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


def test_the_parts_of_a_turn_stay_together_in_whatever_order_they_come() -> None:
    for items in itertools.permutations((REASONING, TEXT, CALL)):
        assert messages(USER, *items, OUTPUT) == messages(USER, REASONING, TEXT, CALL, OUTPUT)


def test_what_several_items_of_a_turn_say_are_its_lines() -> None:
    empty = {"role": "assistant", "content": ""}
    assert messages(USER, REASONING, REASONING, TEXT, empty, TEXT)[1:] == (
        ChatMessage("assistant", "I look.\nI look.", reasoning="Look.\nLook."),
    )


def test_whoever_else_speaks_ends_the_turn() -> None:
    developer = {"role": "developer", "content": "Be brief."}
    for other in (USER, developer, OUTPUT):
        assert [message.role for message in messages(USER, TEXT, CALL, other, TEXT)].count("assistant") == 2


def test_a_turn_of_many_calls_takes_time_in_proportion() -> None:
    def seconds(num_calls: int) -> float:
        items = [FunctionCall(type="function_call", call_id="c", name="f", arguments="{}")] * num_calls
        start = time.process_time()
        chat_messages(None, items)
        return time.process_time() - start

    assert seconds(40_000) < 1.0  # seconds; 14 when each call copied those before it


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


def test_what_is_listed_is_openais_full_form() -> None:
    items: list[dict[str, Any]] = [{"role": "assistant", "content": "Hello."}, USER, REASONING, TEXT, CALL, OUTPUT]
    listed = items_in_full(parse_items(items), RESPONSE_ID)
    client: TypeAdapter[Any] = TypeAdapter(ResponseItem)
    for item in listed:
        client.validate_python(item)
    assert listed[1]["content"] == [{"type": "input_text", "text": USER["content"]}]


def test_what_is_kept_says_the_same_and_is_no_larger_than_what_was_sent() -> None:
    parts = {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
    items: list[dict[str, Any]] = [
        {"role": "assistant", "content": "Hello."},
        USER,
        REASONING,
        TEXT,
        CALL,
        OUTPUT,
        parts,
    ]
    parsed = parse_items(items)
    kept = items_to_keep(parsed)
    assert messages(*kept) == messages(*items)
    assert items_in_full(parse_items(kept), RESPONSE_ID) == items_in_full(parsed, RESPONSE_ID)
    for one, sent in zip(kept, items, strict=True):
        assert len(encode(one)) <= len(encode(sent))


def test_a_listed_item_has_an_id_of_its_own_that_tells_its_place() -> None:
    listed = items_in_full(parse_items([TEXT, TEXT, CALL]), RESPONSE_ID)
    ids = [item["id"] for item in listed]
    assert len({*ids, "msg_1", "fc_1"}) == 5
    assert [place_of(one) for one in ids] == [ItemPlace(RESPONSE_ID, True, position) for position in range(3)]
    assert place_of("msg_1") is None
