"""OpenAI's chunk rules, and that streamed and whole replies say the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.completions import ChatShape, Completion, ReplyShape, TextShape
from gateway.errors import ServerError
from gateway.output_stream import OutputStream
from gateway.protocol.responses import encode
from model_registry.contract import FinishReason, SequenceOutput, Usage


def output(text: str, reason: FinishReason | None = None) -> SequenceOutput:
    usage = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4) if reason else None
    return SequenceOutput(request_id="r", text=text, finish_reason=reason, usage=usage)


def completion(shape: ReplyShape, num_choices: int, *, usage_chunk: bool = False) -> Completion:
    stream = OutputStream(num_choices, on_close=lambda: None)
    return Completion(stream, shape, num_choices, usage_chunk=usage_chunk)


async def chunks_of(made: Completion) -> list[dict[str, Any]]:
    return [json.loads(encode(chunk)) async for chunk in made.chunks()]


async def test_a_chat_stream_opens_with_the_role_and_ends_with_a_chunk_of_its_own() -> None:
    made = completion(ChatShape("m"), 1)
    made.stream.push(0, output("hi", FinishReason.LENGTH))
    chunks = await chunks_of(made)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""}, {"content": "hi"}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("shape", [ChatShape("m"), TextShape("m")])
async def test_choices_open_in_the_order_of_their_indexes(shape: ReplyShape) -> None:
    made = completion(shape, 3)
    for index in (2, 0, 1):
        made.stream.push(index, output(str(index)))
        made.stream.push(index, output("", FinishReason.STOP))
    indexes = [chunk["choices"][0]["index"] for chunk in await chunks_of(made)]
    assert indexes[:3] == [0, 1, 2]


async def test_the_usage_is_announced_and_comes_last() -> None:
    made = completion(ChatShape("m", no_usage=None), 2, usage_chunk=True)
    made.stream.push(0, output("a", FinishReason.STOP))
    made.stream.push(1, output("b", FinishReason.STOP))
    *before, last = await chunks_of(made)
    assert all(chunk["usage"] is None for chunk in before)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 4},
    }  # fmt: skip


async def test_a_whole_chat_reply_has_openais_shape() -> None:
    made = completion(ChatShape("m", id="chatcmpl-1", created=7), 1)
    made.stream.push(0, output("hi", FinishReason.STOP))
    assert json.loads(encode(await made.whole())) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }


async def test_a_whole_text_reply_has_openais_shape() -> None:
    made = completion(TextShape("m", id="cmpl-1", created=7), 1)
    made.stream.push(0, output("hi", FinishReason.STOP))
    reply = json.loads(encode(await made.whole()))
    assert reply["object"] == "text_completion"
    assert reply["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}]


async def test_an_error_comes_through_both_ways() -> None:
    for read in (lambda made: made.whole(), chunks_of):
        made = completion(ChatShape("m"), 1)
        made.stream.push(0, output("half"))
        made.stream.fail(ServerError())
        with pytest.raises(ServerError):
            await read(made)


PIECES = st.lists(st.tuples(st.integers(0, 1), st.text(max_size=4), st.booleans()), max_size=12)


@given(PIECES)
def test_streamed_text_usage_and_reason_equal_the_whole_reply(pieces: list[tuple[int, str, bool]]) -> None:
    asyncio.run(_compare(pieces))


async def _compare(pieces: list[tuple[int, str, bool]]) -> None:
    streamed, whole = completion(ChatShape("m"), 2, usage_chunk=True), completion(ChatShape("m"), 2)
    chunks: list[dict[str, Any]] = []
    reader = asyncio.create_task(_collect(streamed, chunks))
    for index, text, reads_now in pieces:
        for made in (streamed, whole):
            made.stream.push(index, output(text))
        if reads_now:
            await asyncio.sleep(0)
    for index in (0, 1):
        for made in (streamed, whole):
            made.stream.push(index, output("!", FinishReason.STOP))
    await reader
    reply = json.loads(encode(await whole.whole()))
    for index in (0, 1):
        deltas = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        text = "".join(one["delta"].get("content", "") for one in deltas)
        assert text == reply["choices"][index]["message"]["content"]
        assert [one["finish_reason"] for one in deltas if one["finish_reason"]] == ["stop"]
    assert chunks[-1]["usage"] == reply["usage"]


async def _collect(made: Completion, chunks: list[dict[str, Any]]) -> None:
    chunks += await chunks_of(made)
