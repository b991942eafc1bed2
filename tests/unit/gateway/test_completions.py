"""OpenAI's chunk rules, and that streamed and whole replies say the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.answer import AnswerReader, PlainReader
from gateway.chat_shape import ChatShape
from gateway.completions import Completion, Layout, ReplyShape
from gateway.errors import ServerError
from gateway.output_stream import OutputStream
from gateway.protocol.responses import encode
from gateway.text_shape import TextShape
from gateway.tool_reader import ToolReader
from model_registry.contract import (
    Candidate,
    FinishReason,
    PromptEcho,
    SequenceOutput,
    SequenceTiming,
    TokenLogprobs,
    Usage,
)
from model_registry.tool_formats import TOOL_SYNTAX, ToolFormat


def output(text: str, reason: FinishReason | None = None, *, tokens: Sequence[str] = ()) -> SequenceOutput:
    """`tokens` are those that come with logprobs."""
    usage = Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4) if reason else None
    logprobs = tuple(TokenLogprobs(Candidate(7, token.encode(), False, -0.5)) for token in tokens)
    return SequenceOutput(request_id="r", text=text, logprobs=logprobs, finish_reason=reason, usage=usage)


def completion(
    shape: ReplyShape,
    num_choices: int,
    *,
    num_prompts: int = 1,
    num_sampled: int | None = None,
    usage_chunk: bool = False,
    new_reader: Callable[[], AnswerReader] = PlainReader,
) -> Completion:
    layout = Layout(num_prompts, num_choices if num_sampled is None else num_sampled, num_choices)
    stream = OutputStream(layout.num_sequences, on_close=lambda: None)
    return Completion(stream, shape, layout, usage_chunk=usage_chunk, new_reader=new_reader)


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


async def test_a_chunk_has_the_logprobs_of_the_tokens_since_the_last_one() -> None:
    """`ST` is held back until it is known not to be `STOP`; `OP` of the second one and the end show no text."""
    made = completion(ChatShape("m"), 1)
    reading: asyncio.Task[list[dict[str, Any]]] = asyncio.create_task(chunks_of(made))
    for one in (
        output("a", tokens=["a"]), output("", tokens=["ST"]), output("STX", tokens=["X"]), output("", tokens=["ST"]),
        output("", FinishReason.STOP, tokens=["OP"]),
    ):  # fmt: skip
        made.stream.push(0, one)
        await asyncio.sleep(0)
    choices = [chunk["choices"][0] for chunk in await reading]
    told = [choice["logprobs"] and [one["token"] for one in choice["logprobs"]["content"]] for choice in choices]
    assert [choice["delta"].get("content") for choice in choices] == ["", "a", "STX", None]
    assert told == [None, ["a"], ["ST", "X"], ["ST", "OP"]]


async def test_a_whole_reply_has_the_logprobs_of_each_choice() -> None:
    for shape, content in ((ChatShape("m"), "content"), (TextShape("m"), "tokens")):
        made = completion(shape, 2)
        for index, text in ((1, "b"), (0, "a")):
            made.stream.push(index, output(text, tokens=[text]))
            made.stream.push(index, output(text, FinishReason.STOP, tokens=[text, "."]))
        choices = json.loads(encode(await made.whole()))["choices"]
        told = [choice["logprobs"][content] for choice in choices]
        names = [[one if isinstance(one, str) else one["token"] for one in entries] for entries in told]
        assert names == [["a", "a", "."], ["b", "b", "."]]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("reads_at_once", [True, False])
async def test_calls_that_come_with_the_end_are_why_it_ended(reads_at_once: bool) -> None:
    syntax = TOOL_SYNTAX[ToolFormat.HERMES]
    made = Completion(
        OutputStream(1, on_close=lambda: None), ChatShape("m"), Layout(), usage_chunk=False,
        new_reader=lambda: ToolReader(syntax, ["look"]),
    )  # fmt: skip
    text = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    reading = asyncio.create_task(chunks_of(made))
    made.stream.push(0, output(text, FinishReason.STOP if not reads_at_once else None))
    await asyncio.sleep(0)
    if reads_at_once:
        made.stream.push(0, output("", FinishReason.STOP))
    assert [chunk["choices"][0]["finish_reason"] for chunk in await reading][-1] == "tool_calls"


async def test_an_error_comes_through_both_ways() -> None:
    for read in (lambda made: made.whole(), chunks_of):
        made = completion(ChatShape("m"), 1)
        made.stream.push(0, output("half"))
        made.stream.fail(ServerError())
        with pytest.raises(ServerError):
            await read(made)


PIECES = st.lists(st.tuples(st.integers(0, 1), st.text(max_size=4), st.booleans()), max_size=12)


@given(PIECES)
def test_streamed_text_logprobs_usage_and_reason_equal_the_whole_reply(pieces: list[tuple[int, str, bool]]) -> None:
    asyncio.run(_compare(pieces))


async def _compare(pieces: list[tuple[int, str, bool]]) -> None:
    streamed, whole = completion(ChatShape("m"), 2, usage_chunk=True), completion(ChatShape("m"), 2)
    chunks: list[dict[str, Any]] = []
    reader = asyncio.create_task(_collect(streamed, chunks))
    for index, text, reads_now in pieces:
        for made in (streamed, whole):
            made.stream.push(index, output(text, tokens=[text]))
        if reads_now:
            await asyncio.sleep(0)
    for index in (0, 1):
        for made in (streamed, whole):
            made.stream.push(index, output("!", FinishReason.STOP, tokens=["!", ""]))
    await reader
    reply = json.loads(encode(await whole.whole()))
    for index in (0, 1):
        deltas = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        text = "".join(one["delta"].get("content", "") for one in deltas)
        assert text == reply["choices"][index]["message"]["content"]
        logprobs = [token for one in deltas if one["logprobs"] for token in one["logprobs"]["content"]]
        assert logprobs == reply["choices"][index]["logprobs"]["content"]
        assert [one["finish_reason"] for one in deltas if one["finish_reason"]] == ["stop"]
    assert chunks[-1]["usage"] == reply["usage"]


async def _collect(made: Completion, chunks: list[dict[str, Any]]) -> None:
    chunks += await chunks_of(made)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("num_pieces", [1, 2])
async def test_a_call_that_comes_with_the_end_is_the_reason_of_it(num_pieces: int, streamed: bool) -> None:
    """A reader who is slow gets everything as one output."""
    text = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    made = completion(
        ChatShape("m", may_call=True), 1, new_reader=lambda: ToolReader(TOOL_SYNTAX[ToolFormat.HERMES], {"look"})
    )
    if num_pieces == 1:
        made.stream.push(0, output(text, FinishReason.STOP))
    else:
        made.stream.push(0, output(text[:20]))
        made.stream.push(0, output(text[20:], FinishReason.STOP))
    replies = await chunks_of(made) if streamed else [json.loads(encode(await made.whole()))]
    assert replies[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_several_prompts_have_their_choices_one_after_the_other_and_each_counts_once() -> None:
    made = completion(TextShape("m"), 2, num_prompts=3)
    for index in (5, 0, 3, 1, 4, 2):
        made.stream.push(index, output(f"text {index}", FinishReason.STOP))
    reply = json.loads(encode(await made.whole()))
    assert [(one["index"], one["text"]) for one in reply["choices"]] == [(i, f"text {i}") for i in range(6)]
    assert reply["usage"] == {
        "prompt_tokens": 15, "completion_tokens": 18, "total_tokens": 33,
        "prompt_tokens_details": {"cached_tokens": 12},
    }  # fmt: skip


async def test_several_prompts_are_streamed_with_the_indexes_of_the_whole_reply() -> None:
    made = completion(TextShape("m", no_usage=None), 1, num_prompts=2, usage_chunk=True)
    for index in (1, 0):
        made.stream.push(index, output(f"text {index}", FinishReason.STOP))
    *chunks, usage = await chunks_of(made)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["index"] for choice in choices][:2] == [0, 1]
    texts = ["".join(one["text"] for one in choices if one["index"] == index) for index in (0, 1)]
    assert texts == ["text 0", "text 1"]
    assert usage["usage"]["prompt_tokens"] == 10


def likely(text: str, logprob: float, num_tokens: int) -> SequenceOutput:
    one = TokenLogprobs(Candidate(7, text.encode(), False, logprob))
    usage = Usage(prompt_tokens=5, completion_tokens=num_tokens)
    return SequenceOutput(
        request_id="r", text=text, logprobs=(one,) * num_tokens, finish_reason=FinishReason.STOP, usage=usage
    )


@pytest.mark.parametrize("shows_logprobs", [True, False])
async def test_the_best_are_the_likeliest_by_token_and_all_that_was_generated_counts(shows_logprobs: bool) -> None:
    made = completion(TextShape("m", shows_logprobs=shows_logprobs), 2, num_prompts=2, num_sampled=3)
    for index, (text, logprob, num_tokens) in enumerate(
        [("long", -0.5, 9), ("poor", -2.0, 1), ("short", -0.9, 1), ("a", -3.0, 1), ("b", -1.0, 1), ("c", -2.0, 1)]
    ):
        made.stream.push(index, likely(text, logprob, num_tokens))
    reply = json.loads(encode(await made.whole()))
    assert [(one["index"], one["text"]) for one in reply["choices"]] == [(0, "long"), (1, "short"), (2, "b"), (3, "c")]
    assert [one["logprobs"] is not None for one in reply["choices"]] == [shows_logprobs] * 4
    assert reply["usage"]["prompt_tokens"] == 10
    assert reply["usage"]["completion_tokens"] == 14


def echoed(*tokens: tuple[str, bool], text: str) -> PromptEcho:
    """A prompt of these tokens: their text, and whether they are special."""
    logprobs = tuple(
        TokenLogprobs(Candidate(place, one.encode(), is_special, -0.25 * place), (Candidate(9, b"x", False, -0.1),))
        for place, (one, is_special) in enumerate(tokens)
    )
    return PromptEcho(text=text, logprobs=logprobs)


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_echoed_prompt_stands_before_the_text_with_its_own_logprobs(streamed: bool) -> None:
    made = completion(TextShape("m", id="cmpl-1", created=7), 1)
    prompt = echoed(("<s>", True), ("Grü", False), ("ße", False), text="<s>Grüße")
    made.stream.push(0, replace(output(" an", tokens=[" an"]), prompt=prompt))
    made.stream.push(0, output(" alle", FinishReason.STOP, tokens=[" alle"]))
    if streamed:
        parts = [chunk["choices"][0] for chunk in await chunks_of(made)]
    else:
        parts = json.loads(encode(await made.whole()))["choices"]
    assert "".join(part["text"] for part in parts) == "<s>Grüße an alle"
    said = [part["logprobs"] for part in parts if part["logprobs"]]
    assert [one for logprobs in said for one in logprobs["tokens"]] == ["<s>", "Grü", "ße", " an", " alle"]
    assert [one for logprobs in said for one in logprobs["token_logprobs"]] == [None, -0.25, -0.5, -0.5, -0.5]
    assert [one for logprobs in said for one in logprobs["text_offset"]] == [0, 0, 3, 8, 11]
    assert said[0]["top_logprobs"][:2] == [None, {"x": -0.1, "Grü": -0.25}]


async def test_the_best_are_judged_by_what_was_generated_and_not_by_their_prompt() -> None:
    made = completion(TextShape("m"), 1, num_sampled=2)
    unlikely = PromptEcho(text="p", logprobs=(TokenLogprobs(Candidate(7, b"p", False, -50.0)),) * 2)
    made.stream.push(0, replace(likely("good", -0.5, 1), prompt=unlikely))
    made.stream.push(1, likely("bad", -1.0, 1))
    reply = json.loads(encode(await made.whole()))
    assert reply["choices"][0]["text"] == "pgood"


@pytest.mark.parametrize("streamed", [True, False])
async def test_where_the_time_went_is_told_once_at_the_end(streamed: bool) -> None:
    layout = Layout(num_sampled=2, num_choices=2)
    stream = OutputStream(2, on_close=lambda: None)
    made = Completion(stream, ChatShape("m"), layout, usage_chunk=True, tells_timing=True)
    await asyncio.sleep(0.05)
    for index in (0, 1):
        stream.push(index, output("a"))
    await asyncio.sleep(0.02)
    timing = SequenceTiming(queue_s=0.01, prefill_s=0.03, decode_s=0.02)
    for index in (1, 0):
        stream.push(index, replace(output("b", FinishReason.STOP), timing=timing))
    parts = await chunks_of(made) if streamed else [json.loads(encode(await made.whole()))]
    (told,) = [part["timing"] for part in parts if "timing" in part]
    assert 0.05 <= told["time_to_first_token_s"] < 5
    assert told["queue_s"] == pytest.approx(told["time_to_first_token_s"] - 0.03)
    assert 0.02 <= told["generation_s"] < 5
    if streamed:
        assert "timing" in parts[-2], "the usage comes last"
