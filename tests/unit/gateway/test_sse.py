"""Events on the wire: one line of JSON each, and an end nobody can misread."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sse_starlette.sse import AppStatus

from gateway.answer import AnswerDelta
from gateway.errors import ApiError, WorkerLostError
from gateway.framing import CHUNK_EVENTS, DONE, event
from gateway.protocol.responses import Chunk
from gateway.sse import configure_library, events
from gateway.text_shape import TextShape

SHAPE = TextShape("m", id="cmpl-1", created=7)


async def chunks(*texts: str, error: Exception | None = None) -> AsyncGenerator[Chunk, None]:
    for text in texts:
        yield SHAPE.delta(0, AnswerDelta(text))
    if error is not None:
        raise error


async def sent(source: AsyncGenerator[Chunk, None]) -> tuple[list[bytes], list[ApiError | None]]:
    ends: list[ApiError | None] = []
    return [one async for one in events(source, CHUNK_EVENTS, ends.append)], ends


@given(st.text())
def test_any_text_is_one_line_that_reads_back_as_it_was(text: str) -> None:
    data = event(SHAPE.delta(0, AnswerDelta(text)))
    lines = data.decode().splitlines()
    assert len(lines) == 2
    assert lines[1] == ""
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"] == text


async def test_a_whole_stream_ends_with_done() -> None:
    data, ends = await sent(chunks("a", "b"))
    assert data[-1] == DONE
    assert len(data) == 3
    assert ends == [None]


async def test_a_broken_stream_ends_with_the_error_and_without_done() -> None:
    data, ends = await sent(chunks("a", error=WorkerLostError()))
    error = json.loads(data[-1].removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "worker_lost")
    assert isinstance(ends[0], WorkerLostError)
    assert DONE not in data


async def test_what_broke_unexpectedly_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    data, _ = await sent(chunks(error=RuntimeError("secret detail")))
    assert b"secret detail" not in data[-1]
    assert b"server_error" in data[-1]
    assert "secret detail" in caplog.text


def test_the_library_neither_ends_streams_at_sigterm_nor_logs_chunks(caplog: pytest.LogCaptureFixture) -> None:
    configure_library()
    assert not AppStatus.enable_automatic_graceful_drain
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("sse_starlette.sse").debug("chunk: %s", "a prompt")
    assert "a prompt" not in caplog.text
