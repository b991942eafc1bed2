"""Messages and their events: Anthropic's shape, one story however it is cut or read."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types import Message as ClientMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.answer import AnswerReader, PlainReader
from gateway.errors import WorkerLostError
from gateway.message_reply import MessageReply
from gateway.output_stream import OutputStream
from gateway.protocol.message_objects import Message
from gateway.protocol.responses import encode
from gateway.reasoning_reader import ReasoningReader
from gateway.sse import events
from gateway.tool_reader import ToolReader
from model_registry.contract import FinishReason, SequenceOutput, Usage
from model_registry.tool_formats import REASONING_SYNTAX, TOOL_SYNTAX, ReasoningFormat, ToolFormat

BEGUN = Message(id="msg_1", model="m")
CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def speaking_reader() -> AnswerReader:
    """Of a model that thinks and calls, with calls numbered from 0."""
    numbers = itertools.count()
    tools = ToolReader(TOOL_SYNTAX[ToolFormat.HERMES], ["look"], new_id=lambda: f"call_{next(numbers)}")
    return ReasoningReader(REASONING_SYNTAX[ReasoningFormat.THINK], tools)


def call(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "look", "arguments": {arguments}}}\n</tool_call>'


def answered(
    *pieces: str,
    reason: FinishReason = FinishReason.STOP,
    stop: str | None = None,
    new_reader: Callable[[], AnswerReader] = speaking_reader,
) -> MessageReply:
    made = MessageReply(
        OutputStream(1, on_close=lambda: None), BEGUN, request_id="req_1", stops=["###"], new_reader=new_reader
    )
    *before, last = pieces or ("",)
    for piece in before:
        made.stream.push(0, SequenceOutput(request_id="r", text=piece))
    usage = Usage(prompt_tokens=5, completion_tokens=10, cached_tokens=4)
    made.stream.push(0, SequenceOutput(request_id="r", text=last, finish_reason=reason, stop=stop, usage=usage))
    return made


async def sent(made: MessageReply) -> list[dict[str, Any]]:
    """The events as a client reads them; each has its name, and is what the client's own types say."""
    read = []
    async for data in events(made.chunks(), made.framing, lambda _: None):
        name, line = data.decode().removesuffix("\n\n").split("\n")
        event = json.loads(line.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":
            CLIENT_EVENT.validate_python(event)
        read.append(event)
    return read


async def whole(made: MessageReply) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode(await made.whole()))
    ClientMessage.model_validate(decoded)
    return decoded


async def test_a_whole_message_has_anthropics_shape() -> None:
    assert await whole(answered("hi", new_reader=PlainReader)) == {
        "type": "message", "id": "msg_1", "role": "assistant", "model": "m",
        "content": [{"type": "text", "citations": None, "text": "hi"}],
        "stop_details": None, "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {
            "input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 10,
        },
    }  # fmt: skip


async def test_a_streamed_answer_comes_in_anthropics_events_one_block_after_the_other() -> None:
    made = await sent(answered("<think>why</think>ok" + call('{"a": 1}') + call("{}")))
    assert [(event["type"], event.get("index")) for event in made] == [
        ("message_start", None),
        ("content_block_start", 0), ("content_block_delta", 0), ("content_block_delta", 0), ("content_block_stop", 0),
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_delta", 2), ("content_block_stop", 2),
        ("content_block_start", 3), ("content_block_delta", 3), ("content_block_stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    assert [event["delta"]["type"] for event in made if event["type"] == "content_block_delta"] == [
        "thinking_delta", "signature_delta", "text_delta", "input_json_delta", "input_json_delta",
    ]  # fmt: skip
    assert made[0]["message"]["content"] == []
    assert made[-2]["delta"] == {"stop_details": None, "stop_reason": "tool_use", "stop_sequence": None}
    assert made[-2]["usage"]["output_tokens"] == 10


async def test_text_behind_a_call_stays_behind_it() -> None:
    made = await whole(answered("a" + call("{}") + "b" + call("{}") + "c"))
    assert [block.get("text") for block in made["content"]] == ["a", None, "b", None, "c"]


async def test_the_input_of_a_call_is_what_the_model_wrote() -> None:
    made = await answered(call('{"big": 123456789012345678901234567890, "a": [1.50]}')).whole()
    assert b'"input":{"big": 123456789012345678901234567890, "a": [1.50]}' in encode(made)


@pytest.mark.parametrize("arguments", ['{"a": "cut', "{'a': 1}", '{"a": NaN}', '{"a": ' + "[" * 10_000])
async def test_an_input_that_is_no_json_is_empty(arguments: str) -> None:
    made = await whole(answered(call(arguments)[: -len("}\n</tool_call>")], reason=FinishReason.LENGTH))
    assert [(block["type"], block["input"]) for block in made["content"]] == [("tool_use", {})]


@pytest.mark.parametrize(
    ("made", "stop_reason", "stop_sequence"),
    [
        (answered("a"), "end_turn", None),
        (answered("a", stop="###"), "stop_sequence", "###"),
        (answered("a", stop="of the registry"), "end_turn", None),
        (answered("a", reason=FinishReason.LENGTH), "max_tokens", None),
        (answered(call("{}")), "tool_use", None),
        (answered(call("{}"), stop="###"), "tool_use", None),
        (answered(call("{}"), reason=FinishReason.LENGTH), "max_tokens", None),
    ],
)
async def test_it_says_why_it_ended(made: MessageReply, stop_reason: str, stop_sequence: str | None) -> None:
    told = await whole(made)
    assert (told["stop_reason"], told["stop_sequence"]) == (stop_reason, stop_sequence)


async def test_an_answer_of_nothing_has_no_blocks() -> None:
    assert (await whole(answered()))["content"] == []


async def test_a_stream_that_fails_says_so_and_nothing_else() -> None:
    made = MessageReply(OutputStream(1, on_close=lambda: None), BEGUN, request_id="req_1")
    made.stream.push(0, SequenceOutput(request_id="r", text="half"))
    made.stream.fail(WorkerLostError())
    *_, delta, error = await sent(made)
    assert delta["delta"]["text"] == "half"
    assert error == {
        "type": "error",
        "error": {
            "type": "api_error", "message": WorkerLostError().message, "details": {"error_code": "worker_lost"},
        },
        "request_id": "req_1",
    }  # fmt: skip


PARTS = st.one_of(st.text("ok.\n<", max_size=5), st.sampled_from(["{}", '{"a": "</b>"}', '{"a": ']).map(call))
ANSWERS = st.builds(
    lambda reasoning, parts: (f"<think>{reasoning}</think>" if reasoning else "") + "".join(parts),
    st.text("why? \n", max_size=5),
    st.lists(PARTS, max_size=5),
)


@given(ANSWERS, st.lists(st.integers(0, 200), max_size=8), st.booleans(), st.sampled_from(FinishReason))
def test_the_same_answer_is_the_same_message_however_it_is_cut_and_read(
    text: str, cuts: list[int], reads_at_once: bool, reason: FinishReason
) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    asyncio.run(_compare(pieces, text, reason, reads_at_once=reads_at_once))


async def _compare(pieces: list[str], text: str, reason: FinishReason, *, reads_at_once: bool) -> None:
    made = MessageReply(OutputStream(1, on_close=lambda: None), BEGUN, request_id="req_1", new_reader=speaking_reader)
    reading = asyncio.create_task(sent(made))
    for piece in pieces:
        made.stream.push(0, SequenceOutput(request_id="r", text=piece))
        if reads_at_once:
            await asyncio.sleep(0)
    usage = Usage(prompt_tokens=5, completion_tokens=10, cached_tokens=4)
    made.stream.push(0, SequenceOutput(request_id="r", finish_reason=reason, usage=usage))
    streamed, uncut = await reading, await whole(answered(text, reason=reason))
    assert _put_together(streamed) == uncut
    assert encode(await answered(*pieces, reason=reason).whole()) == encode(await answered(text, reason=reason).whole())


def _put_together(streamed: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the events."""
    message: dict[str, Any] = streamed[0]["message"]
    for event in streamed:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                block, (name, value) = message["content"][event["index"]], list(event["delta"].items())[1]
                block["json" if name == "partial_json" else name] += value
            case "content_block_stop":
                block = message["content"][event["index"]]
                written = block.pop("json")
                if block["type"] == "tool_use":
                    block["input"] = _object(written)
            case "message_delta":
                message |= {**event["delta"], "usage": event["usage"]}
    return message


def _object(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return {}


async def test_a_long_answer_that_comes_at_once_is_read_in_time_in_proportion() -> None:
    text = call('{"a": "' + "one, " * 8_000 + '"}') + "two. " * 8_000
    made = await asyncio.wait_for(whole(answered(text)), timeout=2)
    assert [len(str(block.get("text") or block["input"]["a"])) for block in made["content"]] == [40_000, 39_999]
