"""Responses and their events: OpenAI's shape, one story however it is cut or read."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response as ClientResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.answer import AnswerDelta, AnswerReader, PlainReader, ToolCallDelta
from gateway.errors import ApiError, ContextLengthExceededError, QueueFullError, WorkerLostError
from gateway.output_stream import OutputStream
from gateway.output_writer import OutputWriter
from gateway.protocol.response_objects import Response
from gateway.protocol.responses import encode
from gateway.response_reply import ResponseReply
from gateway.sse import events
from model_registry.contract import Candidate, FinishReason, SequenceOutput, TokenLogprobs, Usage

BEGUN = Response(
    id="resp_" + "0" * 32, created_at=7, model="m", reasoning={"effort": None, "summary": None}, store=False,
    temperature=1.0, text={"format": {"type": "text"}, "verbosity": "medium"}, tool_choice="auto", top_p=1.0,
)  # fmt: skip
CLIENT_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class MarkedReader:
    """Of a made-up model: `~` turns reasoning on and off, `{` begins the next call and `}` ends it."""

    def __init__(self) -> None:
        self._part = "content"
        self._num_calls = 0

    @property
    def has_tool_calls(self) -> bool:
        return self._num_calls > 0

    def feed(self, text: str) -> AnswerDelta:
        delta = AnswerDelta()
        for char in text:
            delta += self._read(char)
        return delta

    def finish(self) -> AnswerDelta:
        return AnswerDelta()

    def _read(self, char: str) -> AnswerDelta:
        if char == "~":
            self._part = "content" if self._part == "reasoning" else "reasoning"
        elif char == "{":
            self._part = "call"
            self._num_calls += 1
            index = self._num_calls - 1
            return AnswerDelta(tool_calls=(ToolCallDelta(index, f"call_{index}", "look"),))
        elif char == "}":
            self._part = "content"
        elif self._part == "call":
            return AnswerDelta(tool_calls=(ToolCallDelta(self._num_calls - 1, arguments=char),))
        else:
            return AnswerDelta(reasoning=char) if self._part == "reasoning" else AnswerDelta(char)
        return AnswerDelta()


def output(text: str, reason: FinishReason | None = None, *, tokens: Sequence[str] = ()) -> SequenceOutput:
    usage = Usage(prompt_tokens=5, completion_tokens=10, cached_tokens=4) if reason else None
    logprobs = tuple(TokenLogprobs(Candidate(7, token.encode(), False, -0.5)) for token in tokens)
    return SequenceOutput(request_id="r", text=text, logprobs=logprobs, finish_reason=reason, usage=usage)


def called(arguments: str, index: int = 0) -> AnswerDelta:
    return AnswerDelta(tool_calls=(ToolCallDelta(index, f"call_{index}", "look", arguments),))


async def never_kept(response: Response) -> Response:
    return response


def reply(reader: type[AnswerReader] = PlainReader) -> ResponseReply:
    return ResponseReply(OutputStream(1, on_close=lambda: None), BEGUN, never_kept, new_reader=reader)


def answered(
    *pieces: str, reason: FinishReason = FinishReason.STOP, reader: type[AnswerReader] = MarkedReader
) -> ResponseReply:
    made = reply(reader)
    for piece in pieces:
        made.stream.push(0, output(piece))
    made.stream.push(0, output("", reason))
    return made


async def sent(made: ResponseReply) -> list[dict[str, Any]]:
    """The events as a client reads them; each has its name, and is what the client's own types say."""
    read = []
    async for data in events(made.chunks(), made.framing, lambda _: None):
        for one in data.decode().removesuffix("\n\n").split("\n\n"):
            name, line = one.split("\n")
            event = json.loads(line.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            CLIENT_EVENT.validate_python(event)
            read.append(event)
    return read


async def whole(made: ResponseReply) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode(await made.whole()))
    ClientResponse.model_validate(decoded)
    return decoded


async def test_a_whole_response_has_openais_shape() -> None:
    made = await whole(answered("hi", reader=PlainReader))
    assert isinstance(made.pop("completed_at"), int)
    assert made == {
        "id": BEGUN.id, "object": "response", "created_at": 7, "status": "completed", "background": False,
        "error": None, "incomplete_details": None, "instructions": None, "max_output_tokens": None,
        "max_tool_calls": None, "model": "m",
        "output": [
            {
                "type": "message", "id": f"msg_{'0' * 32}o0", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}],
            }
        ],
        "parallel_tool_calls": True, "previous_response_id": None, "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None}, "safety_identifier": None, "service_tier": "default",
        "store": False, "temperature": 1.0, "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
        "usage": {
            "input_tokens": 5, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 10, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 15,
        },
        "user": None, "metadata": {},
    }  # fmt: skip


async def test_a_streamed_text_comes_in_openais_events_numbered_from_zero() -> None:
    made = await sent(answered("hi", reader=PlainReader))
    assert [event["type"] for event in made] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in made] == list(range(len(made)))
    assert made[0]["response"]["status"] == made[1]["response"]["status"] == "in_progress"
    assert made[2]["item"]["content"] == []


async def test_reasoning_text_and_calls_are_items_each_done_with_all_that_its_deltas_said() -> None:
    made = await sent(answered("~why~ok{1}{2}"))
    assert [event["type"].removeprefix("response.") for event in made[2:-1]] == [
        "output_item.added", "content_part.added", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    output_items = made[-1]["response"]["output"]
    assert [item["type"] for item in output_items] == ["reasoning", "message", "function_call", "function_call"]
    assert output_items[0]["content"] == [{"type": "reasoning_text", "text": "why"}]
    assert [(item["call_id"], item["arguments"]) for item in output_items[2:]] == [("call_0", "1"), ("call_1", "2")]
    done = {event["output_index"]: event["item"] for event in made if event["type"] == "response.output_item.done"}
    assert [done[index] for index in range(4)] == output_items


async def test_what_the_limit_cut_is_incomplete_with_its_last_item() -> None:
    made = await whole(answered("ok{1", reason=FinishReason.LENGTH))
    assert made["status"] == "incomplete"
    assert made["incomplete_details"] == {"reason": "max_output_tokens"}
    assert made["completed_at"] is None
    assert [item["status"] for item in made["output"]] == ["completed", "incomplete"]
    events_of_it = await sent(answered("ok", reason=FinishReason.LENGTH))
    assert events_of_it[-1]["type"] == "response.incomplete"


@pytest.mark.parametrize(
    ("deltas", "statuses"),
    [
        ((AnswerDelta("ok"), called('{"a": 1}'), AnswerDelta(" behind")), ["incomplete", "completed"]),
        ((AnswerDelta("ok"), called('{"a": 1'), called("")), ["completed", "incomplete"]),
        ((called('{"a": 1}'), called('{"b"', 1)), ["completed", "incomplete"]),
        ((called('{"a": 1}'),), ["completed"]),
        ((called('{"a": ' + "[" * 100_000),), ["incomplete"]),
        ((AnswerDelta(reasoning="why"),), ["incomplete"]),
    ],
)
def test_of_an_answer_that_is_cut_what_was_open_is_incomplete(
    deltas: Sequence[AnswerDelta], statuses: list[str]
) -> None:
    writer = OutputWriter(BEGUN.id)
    for delta in deltas:
        list(writer.add(delta))
    list(writer.finish(is_cut=True))
    assert [item.status for item in writer.items] == statuses


async def test_an_answer_of_nothing_is_an_empty_message() -> None:
    made = await whole(answered())
    assert [(item["type"], item["content"][0]["text"]) for item in made["output"]] == [("message", "")]


async def test_an_answer_of_calls_only_has_no_message() -> None:
    made = await whole(answered("{1}"))
    assert [item["type"] for item in made["output"]] == ["function_call"]


async def test_reasoning_tokens_are_estimated_by_their_share_of_the_text() -> None:
    made = await whole(answered("~abc~d"))
    assert made["usage"]["output_tokens_details"] == {"reasoning_tokens": 8}


async def test_logprobs_are_told_with_the_message_and_all_of_them_by_its_deltas() -> None:
    made = reply()
    made.stream.push(0, output("a", tokens=["a"]))
    reading = asyncio.create_task(sent(made))
    await asyncio.sleep(0.01)
    made.stream.push(0, output("b", FinishReason.STOP, tokens=["b", "</s>"]))
    told = await reading
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert [[one["token"] for one in event["logprobs"]] for event in deltas] == [["a"], ["b", "</s>"]]
    [part] = told[-1]["response"]["output"][0]["content"]
    assert [one["token"] for one in part["logprobs"]] == ["a", "b", "</s>"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerLostError(), "server_error"),
        (QueueFullError("full", retry_after_s=1), "rate_limit_exceeded"),
        (ContextLengthExceededError("too long", param="input"), "invalid_prompt"),
    ],
)
async def test_a_stream_that_fails_says_so_twice_and_says_nothing_else(error: ApiError, code: str) -> None:
    made = reply(MarkedReader)
    made.stream.push(0, output("~why~half"))
    made.stream.fail(error)
    *before, told, failed = await sent(made)
    assert told["type"] == "error"
    assert told["error"] == {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
    assert (told["code"], told["message"], told["param"]) == (error.code, error.message, error.param)
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": code, "message": error.message}
    assert [item["type"] for item in failed["response"]["output"]] == ["reasoning"]
    numbers = [event["sequence_number"] for event in (*before, told, failed)]
    assert numbers == list(range(len(numbers)))


async def test_a_response_is_kept_before_its_end_is_told() -> None:
    kept: list[Response] = []

    async def keep(response: Response) -> Response:
        kept.append(response)
        return response

    made = ResponseReply(OutputStream(1, on_close=lambda: None), BEGUN, keep)
    made.stream.push(0, output("hi", FinishReason.STOP))
    async for event in made.chunks():
        assert not kept or event.event_type == "response.completed"
    assert [response.status for response in kept] == ["completed"]


ANSWERS = st.tuples(
    st.text("why? ", max_size=5), st.text("ok.\n", max_size=5), st.lists(st.text("123", max_size=3), max_size=3)
).map(lambda parts: (f"~{parts[0]}~" if parts[0] else "") + parts[1] + "".join(f"{{{one}}}" for one in parts[2]))


@given(ANSWERS, st.lists(st.integers(0, 30), max_size=6), st.booleans(), st.sampled_from(FinishReason))
def test_the_same_answer_is_the_same_response_however_it_is_cut_and_read(
    text: str, cuts: list[int], reads_at_once: bool, reason: FinishReason
) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    streamed, uncut = asyncio.run(_both_ways(pieces, text, reason, reads_at_once=reads_at_once))
    final = streamed[-1]["response"]
    for made in (final, uncut):
        made["completed_at"] = None
    assert final == uncut
    assert _from_deltas(streamed) == [_text_of(item) for item in uncut["output"]]


async def _both_ways(
    pieces: list[str], text: str, reason: FinishReason, *, reads_at_once: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    made = reply(MarkedReader)
    reading = asyncio.create_task(sent(made))
    for piece in pieces:
        made.stream.push(0, output(piece, tokens=list(piece)))
        if reads_at_once:
            await asyncio.sleep(0)
    made.stream.push(0, output("", reason, tokens=[""]))
    uncut = reply(MarkedReader)
    uncut.stream.push(0, output(text, reason, tokens=[*text, ""]))
    return await reading, await whole(uncut)


def _from_deltas(streamed: list[dict[str, Any]]) -> list[str]:
    """What the deltas of each item add up to, by the items' places."""
    texts: dict[int, str] = {}
    for event in streamed:
        if event["type"] == "response.output_item.added":
            texts[event["output_index"]] = ""
        elif event["type"].endswith(".delta"):
            texts[event["output_index"]] += event["delta"]
    return [texts[index] for index in sorted(texts)]


def _text_of(item: dict[str, Any]) -> str:
    return str(item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])


def test_items_have_ids_of_their_places() -> None:
    writer = OutputWriter(BEGUN.id)
    for _ in writer.add(AnswerDelta(reasoning="r", content="c", tool_calls=(ToolCallDelta(0, "call", "f"),))):
        pass
    list(writer.finish(is_cut=False))
    assert [item.id.partition("_")[0] for item in writer.items] == ["rs", "msg", "fc"]
    assert [item.id[-2:] for item in writer.items] == ["o0", "o1", "o2"]
