"""The gRPC channel against the worker's own server: frames, aborts, refusals, and a worker that dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

import pytest
from prometheus_client import CollectorRegistry

from gateway import outages
from gateway.channel import ChannelClosedError, GrpcChannel
from gateway.dispatch import Dispatcher
from gateway.errors import ModelUnavailableError
from gateway.metrics import Metrics
from gateway.ticket import Submission
from model_registry.contract import (
    Frame,
    GenerationRequest,
    ReplicaState,
    ReplicaView,
    SamplingParams,
    SequenceOutput,
    SubmitBatch,
    TextPrompt,
    TextSegment,
    WorkerStatus,
)
from tests.support.scripted_pool import MODEL, end_of, model_view, piece_of, pool_view
from workers.channel import ChannelServer
from workers.exchange import Exchange

SECRET = "secret"
REQUESTS = tuple(
    GenerationRequest(
        request_id=name, prompt=TextPrompt((TextSegment("hé", trusted=False),)), sampling=SamplingParams(stop=("x",))
    )
    for name in ("one", "two")
)


class RecordingEngine:
    """What the worker's exchange hands requests to."""

    def __init__(self) -> None:
        self.submitted: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.changed = asyncio.Event()

    def submit(self, requests: Iterable[GenerationRequest]) -> None:
        self.submitted += requests
        self.changed.set()

    def abort(self, request_ids: Iterable[str]) -> None:
        self.aborted += request_ids
        self.changed.set()

    def status(self) -> WorkerStatus:
        return WorkerStatus(num_running=len(self.submitted))

    async def until_changed(self) -> None:
        await asyncio.wait_for(self.changed.wait(), 5)
        self.changed.clear()


class Worker:
    def __init__(self) -> None:
        self.engine = RecordingEngine()
        self.exchange = Exchange(self.engine, max_requests=8)
        self.server = ChannelServer(self.exchange, SECRET)
        self.address = ""

    def emit(self, *outputs: SequenceOutput) -> None:
        self.exchange.route(Frame(outputs=outputs, status=self.engine.status()))


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    worker.address = await worker.server.start("127.0.0.1")
    yield worker
    await worker.server.stop()


async def next_outputs(frames: AsyncIterator[Frame]) -> tuple[SequenceOutput, ...]:
    """Of the next frame that is more than a sign of life."""
    async with asyncio.timeout(5):
        return await anext(frame.outputs async for frame in frames if frame.outputs)


async def to_the_end(frames: AsyncIterator[Frame]) -> None:
    async for _ in frames:
        pass


async def test_requests_go_down_and_outputs_come_up_unchanged(worker: Worker) -> None:
    channel = GrpcChannel(worker.address, SECRET)
    await channel.open()
    channel.submit(SubmitBatch(REQUESTS))
    await worker.engine.until_changed()
    assert worker.engine.submitted == list(REQUESTS)
    outputs = (piece_of(REQUESTS[0], "wörld"), end_of(REQUESTS[1]))
    worker.emit(*outputs)
    assert await next_outputs(channel.frames()) == outputs
    channel.abort(["one"])
    await worker.engine.until_changed()
    assert worker.engine.aborted == ["one"]
    await channel.close()


async def test_a_gateway_that_goes_away_takes_its_requests_along(worker: Worker) -> None:
    channel = GrpcChannel(worker.address, SECRET)
    await channel.open()
    channel.submit(SubmitBatch(REQUESTS))
    await worker.engine.until_changed()
    await channel.close()
    await worker.engine.until_changed()
    assert sorted(worker.engine.aborted) == ["one", "two"]


async def test_an_idle_worker_shows_that_it_lives(worker: Worker) -> None:
    channel = GrpcChannel(worker.address, SECRET)
    await channel.open()
    frame = await asyncio.wait_for(anext(channel.frames()), 5)
    assert frame.outputs == ()
    await channel.close()


async def test_a_wrong_secret_is_told(worker: Worker) -> None:
    channel = GrpcChannel(worker.address, "wrong")
    with pytest.raises(ChannelClosedError, match="UNAUTHENTICATED: the pool's secret is missing or wrong"):
        await channel.open()
    await channel.close()


async def test_a_worker_that_refuses_us_is_out_of_reach_and_not_one_that_dies(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "CONNECT_GRACE_S", 0.5)
    metrics = Metrics(CollectorRegistry())
    dispatcher = Dispatcher(lambda address, _: GrpcChannel(address, "wrong"), metrics, request_timeout_s=30)
    ready = ReplicaView(replica_id="a", state=ReplicaState.READY, address=worker.address)
    dispatcher.update(pool_view(model_view(ready)))
    stream = dispatcher.submit(
        Submission(
            model_id=MODEL,
            prompts=(REQUESTS[0].prompt,),
            sampling=(REQUESTS[0].sampling,),
            prompt_param="prompt",
            trace_id="req",
            received_at=time.monotonic(),
        )
    )
    with pytest.raises(ModelUnavailableError):
        await asyncio.wait_for(stream.started(), 5)
    await dispatcher.close()


async def test_a_worker_that_stops_breaks_the_channel_at_once(worker: Worker) -> None:
    channel = GrpcChannel(worker.address, SECRET)
    await channel.open()
    frames = channel.frames()
    await asyncio.wait_for(anext(frames), 5)
    stopping = asyncio.create_task(worker.server.stop())
    with pytest.raises(ChannelClosedError, match=worker.address):
        await asyncio.wait_for(to_the_end(frames), 5)
    await stopping
    await channel.close()


async def test_an_address_where_nobody_listens_is_given_up() -> None:
    channel = GrpcChannel("127.0.0.1:1", SECRET, connect_timeout_s=0.2)
    with pytest.raises(ChannelClosedError, match=r"no connection to the worker at 127.0.0.1:1 within 0.2 s"):
        await channel.open()
    await channel.close()
