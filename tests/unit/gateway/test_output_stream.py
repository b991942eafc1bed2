"""The stream between dispatcher and reader: nothing lost, nothing growing, one end."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ServerError
from gateway.output_stream import Indexed, OutputStream
from model_registry.contract import FinishReason, SequenceOutput


def output(text: str, *, final: bool = False) -> SequenceOutput:
    return SequenceOutput(request_id="r", text=text, finish_reason=FinishReason.STOP if final else None)


def stream_of(num_choices: int) -> OutputStream:
    return OutputStream(num_choices, on_close=lambda: None)


async def read_all(stream: OutputStream) -> list[Indexed]:
    return [item async for item in stream]


async def test_what_was_not_read_is_one_output() -> None:
    stream = stream_of(1)
    for piece in "abc":
        stream.push(0, output(piece))
    stream.push(0, output("d", final=True))
    [(index, merged)] = await read_all(stream)
    assert (index, merged.text, merged.finish_reason) == (0, "abcd", FinishReason.STOP)


async def test_it_ends_after_the_last_choice() -> None:
    stream = stream_of(2)
    ended = []
    for index, text in ((1, "b"), (0, "a")):
        stream.push(index, output(text, final=True))
        ended.append(stream.is_ended)
    assert ended == [False, True]
    assert [index for index, _ in await read_all(stream)] == [0, 1]


async def test_an_error_comes_after_everything_that_came_before_it() -> None:
    stream = stream_of(1)
    stream.push(0, output("a"))
    stream.fail(ServerError())
    assert (await anext(stream))[1].text == "a"
    with pytest.raises(ServerError):
        await anext(stream)


async def test_waiting_for_the_start_shows_an_early_error() -> None:
    stream = stream_of(1)
    asyncio.get_running_loop().call_soon(stream.fail, ServerError())
    with pytest.raises(ServerError):
        await stream.started()


async def test_nothing_comes_after_the_end() -> None:
    stream = stream_of(1)
    stream.push(0, output("a", final=True))
    stream.push(0, output("b"))
    stream.fail(ServerError())
    assert [one.text for _, one in await read_all(stream)] == ["a"]


def test_closing_tells_the_owner_once() -> None:
    closed: list[bool] = []
    stream = OutputStream(1, on_close=lambda: closed.append(True))
    stream.close()
    stream.close()
    assert closed == [True]


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=3), st.booleans())))
def test_every_choice_reads_what_was_written_to_it(steps: list[tuple[int, str, bool]]) -> None:
    async def check() -> None:
        stream = stream_of(3)
        read = dict.fromkeys(range(3), "")
        written = dict.fromkeys(range(3), "")
        for index, text, reads in steps:
            stream.push(index, output(text))
            written[index] += text
            if reads:
                got, one = await anext(stream)
                read[got] += one.text
        for index in written:
            stream.push(index, output("", final=True))
        for index, one in await read_all(stream):
            read[index] += one.text
        assert read == written

    asyncio.run(check())
