"""The in-memory channel keeps the promises of the real one."""

from __future__ import annotations

import asyncio

import pytest

from gateway.channel import ChannelClosedError
from model_registry.contract import GenerationRequest, SamplingParams, SubmitBatch, TextPrompt, TextSegment
from tests.support.scripted_pool import ScriptedWorker, end_of, piece_of

REQUEST = GenerationRequest(
    request_id="r", prompt=TextPrompt((TextSegment("hi", trusted=False),)), sampling=SamplingParams(stop=("x",))
)


async def test_commands_go_down_and_frames_come_up_in_order() -> None:
    worker = ScriptedWorker()
    channel = worker.channel()
    await channel.open()
    channel.submit(SubmitBatch((REQUEST,)))
    channel.abort(["r"])
    assert (worker.requests, worker.aborted) == ([REQUEST], ["r"])
    worker.emit(piece_of(REQUEST, "a"))
    worker.emit(end_of(REQUEST))
    frames = channel.frames()
    assert (await anext(frames)).outputs == (piece_of(REQUEST, "a"),)
    assert (await anext(frames)).outputs == (end_of(REQUEST),)


async def test_a_broken_channel_says_so_after_what_had_arrived() -> None:
    worker = ScriptedWorker()
    channel = worker.channel()
    await channel.open()
    worker.emit(piece_of(REQUEST, "a"))
    await asyncio.sleep(0)
    worker.die()
    frames = channel.frames()
    await anext(frames)
    with pytest.raises(ChannelClosedError, match="the worker died"):
        await anext(frames)
    with pytest.raises(ChannelClosedError):
        await worker.channel().open()
