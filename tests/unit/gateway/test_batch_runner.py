"""Batches that run in gateways without a port, in front of scripted workers: what is tried again, and who may go on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from gateway import batch_runner, line_feed
from gateway.app import create_app
from gateway.batch_store import BatchStore, Outcome
from gateway.offline import Offline
from gateway.protocol.batches import Batch, BatchRequest, BatchStatus
from gateway.protocol.files import UploadFields
from gateway.settings import GatewaySettings
from gateway.store_file import StoreError
from gateway.ticket import Submission
from model_registry.contract import FaultKind, SamplingParams, TextPrompt, TextSegment, WorkerStatus
from tests.support.scripted_pool import (
    MODEL,
    ScriptedWorker,
    StaticPool,
    connect_to,
    end_of,
    entry,
    fault_of,
    model_view,
    piece_of,
    pool_view,
    replica,
)

IDLE = WorkerStatus()
WAIT_S = 5.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_feed, "PAUSE_S", 0.02)


@asynccontextmanager
async def running(folder: Path, *, slots: int = 1, **workers: ScriptedWorker) -> AsyncIterator[FastAPI]:
    view = pool_view(model_view(*map(replica, workers), of=entry(ongoing=slots, max_batch_size=slots)))
    app = create_app(GatewaySettings(files=folder), StaticPool(view), connect_to(workers))
    async with app.router.lifespan_context(app):
        yield app


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  what is waited for is in another part's hands
            await asyncio.sleep(0.005)


def offline_of(app: FastAPI) -> Offline:
    offline: Offline = app.state.offline
    return offline


async def started(app: FastAPI, num_lines: int = 1) -> Batch:
    async def content() -> AsyncIterator[bytes]:
        for number in range(num_lines):
            body = {"model": MODEL, "prompt": str(number)}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
            yield json.dumps(line).encode() + b"\n"

    file = await offline_of(app).upload(content(), "a.jsonl", UploadFields(purpose="batch"))
    request = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return await offline_of(app).create(BatchRequest.parse(json.dumps(request).encode()))


async def ended(app: FastAPI, batch: Batch) -> tuple[Batch, dict[str, Any]]:
    """The batch at its end, and its lines of both files by their custom ids."""
    async with asyncio.timeout(WAIT_S):
        while (batch := await offline_of(app).batch(batch.id)).status is not BatchStatus.COMPLETED:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    found = {}
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        _, path = await offline_of(app).content(file_id)
        for text in path.read_bytes().splitlines():
            line = json.loads(text)
            assert line["custom_id"] not in found
            found[line["custom_id"]] = line["response"]
    return batch, found


def lines(app: FastAPI, outcome: str) -> float:
    return app.state.metrics.registry.get_sample_value("aviary_batch_lines_total", {"outcome": outcome}) or 0.0


def asked_by_a_client(app: FastAPI) -> Submission:
    return Submission(
        model_id=MODEL,
        prompts=(TextPrompt((TextSegment("hi", trusted=True),)),),
        sampling=(SamplingParams(),),
        prompt_param="prompt",
        trace_id="req",
        received_at=asyncio.get_running_loop().time(),
    )


async def test_a_line_that_gave_way_is_sent_again(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    async with running(tmp_path, a=worker) as app:
        batch = await started(app)
        await until(lambda: len(worker.requests) == 1)
        worker.emit(piece_of(worker.requests[0], "lost"), status=IDLE)
        client = app.state.dispatcher.submit(asked_by_a_client(app))
        await until(lambda: len(worker.requests) == 2)
        assert worker.aborted == [worker.requests[0].request_id]
        worker.emit(end_of(worker.requests[1], text="first"), status=IDLE)
        assert [output.text async for _, output in client] == ["first"]
        client.close()
        await until(lambda: len(worker.requests) == 3)
        worker.emit(end_of(worker.requests[2], text="whole"), status=IDLE)
        _, found = await ended(app, batch)
        assert found["0"]["body"]["choices"][0]["text"] == "whole"
        assert (lines(app, "set_aside"), lines(app, "completed")) == (1, 1)


async def test_a_line_whose_worker_was_lost_is_sent_once_more_and_then_has_its_error(tmp_path: Path) -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with running(tmp_path, a=a, b=b) as app:
        batch = await started(app)
        await until(lambda: bool(a.requests or b.requests))
        first, second = (a, b) if a.requests else (b, a)
        first.emit(piece_of(first.requests[0], "half"), status=IDLE)
        await asyncio.sleep(0.02)
        first.die()
        await until(lambda: bool(second.requests))
        second.emit(piece_of(second.requests[0], "half"), status=IDLE)
        await asyncio.sleep(0.02)
        second.die()
        _, found = await ended(app, batch)
        assert found["0"]["status_code"] == 500
        assert found["0"]["body"]["error"]["code"] == "worker_lost"
        assert lines(app, "failed") == 1


async def test_a_fault_of_one_line_is_its_own(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    async with running(tmp_path, slots=4, a=worker) as app:
        batch = await started(app, 2)
        await until(lambda: len(worker.requests) == 2)
        bad, good = worker.requests
        worker.emit(fault_of(bad, FaultKind.CONTEXT_LENGTH_EXCEEDED), end_of(good), status=IDLE)
        batch, found = await ended(app, batch)
        assert sorted(one["status_code"] for one in found.values()) == [200, 400]
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)


async def test_no_more_lines_are_sent_than_there_is_room_for(tmp_path: Path) -> None:
    worker = ScriptedWorker()
    async with running(tmp_path, slots=8, a=worker) as app:
        batch = await started(app, 50)
        await until(lambda: len(worker.requests) >= 6)
        await asyncio.sleep(0.05)
        assert len(worker.requests) == 6
        waiting = len(app.state.dispatcher._lanes[MODEL].queued)
        assert waiting <= 1
        answered = 0
        while answered < 50:
            await until(lambda answered=answered: len(worker.requests) > answered)  # type: ignore[misc]
            worker.emit(end_of(worker.requests[answered]), status=IDLE)
            answered += 1
        _, found = await ended(app, batch)
        assert len(found) == 50


async def test_without_room_for_results_a_batch_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_feed, "NO_ROOM_PAUSE_S", 0.01)
    worker = ScriptedWorker()
    async with running(tmp_path, a=worker) as app:
        app.state.offline_stores.files._max_bytes = 200
        batch = await started(app)
        app.state.offline_stores.files._max_bytes = 1
        await asyncio.sleep(0.1)
        assert worker.requests == []
        app.state.offline_stores.files._max_bytes = 1000
        await until(lambda: len(worker.requests) == 1)
        worker.emit(end_of(worker.requests[0]), status=IDLE)
        await ended(app, batch)


async def test_a_gateway_that_hangs_loses_its_batches_and_what_it_still_answers_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batch_runner, "LEASE_S", 0.3)
    slow, quick = ScriptedWorker(), ScriptedWorker()
    async with running(tmp_path, a=slow) as hanging:
        batch = await started(hanging)
        await until(lambda: len(slow.requests) == 1)
        monkeypatch.setattr(hanging.state.batch_runner, "_look", asyncio.Event().wait)
        async with running(tmp_path, a=quick) as other:
            await until(lambda: len(quick.requests) == 1)
            slow.emit(end_of(slow.requests[0], text="too late"), status=IDLE)
            await until(lambda: "run by another gateway" in caplog.text)
            quick.emit(end_of(quick.requests[0], text="in time"), status=IDLE)
            _, found = await ended(other, batch)
            assert found["0"]["body"]["choices"][0]["text"] == "in time"
            assert (lines(hanging, "completed"), lines(other, "completed")) == (0, 1)


async def test_a_gateway_that_ends_gives_back_what_it_has_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, a=ScriptedWorker()) as app:
        batch = await started(app)
        await until(lambda: bool(app.state.dispatcher._jobs))
    worker = ScriptedWorker()
    async with running(tmp_path, a=worker) as app:
        await until(lambda: len(worker.requests) == 1)
        worker.emit(end_of(worker.requests[0]), status=IDLE)
        await ended(app, batch)


async def test_an_end_of_which_nobody_heard_has_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = BatchStore.finish

    async def finish_unheard(store: BatchStore, batch_id: str, owner: str, outcome: Outcome) -> None:
        await finish(store, batch_id, owner, outcome)
        raise StoreError("it did not answer in time")

    monkeypatch.setattr(BatchStore, "finish", finish_unheard)
    worker = ScriptedWorker()
    async with running(tmp_path, a=worker) as app:
        batch = await started(app)
        await until(lambda: len(worker.requests) == 1)
        worker.emit(end_of(worker.requests[0], text="kept"), status=IDLE)
        _, found = await ended(app, batch)
        assert found["0"]["body"]["choices"][0]["text"] == "kept"
