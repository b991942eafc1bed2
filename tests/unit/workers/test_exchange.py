"""The exchange: who may submit, where outputs go, and what a connection's end takes along."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from model_registry.contract import (
    AbortBatch,
    FaultKind,
    FinishReason,
    Frame,
    GenerationRequest,
    SamplingParams,
    SequenceOutput,
    SubmitBatch,
    TokenPrompt,
    WorkerStatus,
)
from workers import exchange as exchange_module
from workers.exchange import Exchange
from workers.outbox import Outbox


class RecordingEngine:
    """Notes what reaches the engine."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.aborted: list[str] = []

    def submit(self, requests: Iterable[GenerationRequest]) -> None:
        self.submitted.extend(request.request_id for request in requests)

    def abort(self, request_ids: Iterable[str]) -> None:
        self.aborted.extend(request_ids)

    def status(self) -> WorkerStatus:
        return WorkerStatus(num_steps=7)


def batch(*request_ids: str) -> SubmitBatch:
    return SubmitBatch(
        tuple(
            GenerationRequest(request_id=request_id, prompt=TokenPrompt((1,)), sampling=SamplingParams())
            for request_id in request_ids
        )
    )


def frame(*outputs: SequenceOutput) -> Frame:
    return Frame(outputs=outputs, status=WorkerStatus())


def token(request_id: str, *, final: bool = False) -> SequenceOutput:
    return SequenceOutput(request_id=request_id, text="x", finish_reason=FinishReason.STOP if final else None)


async def faults(connection: Outbox) -> list[tuple[str, FaultKind]]:
    outputs = await connection.take(0)
    return [(output.request_id, output.fault.kind) for output in outputs if output.fault is not None]


async def test_a_batch_reaches_the_engine_in_its_order() -> None:
    engine = RecordingEngine()
    exchange = Exchange(engine, max_requests=8)
    exchange.handle(exchange.connect(), batch("a", "b"))
    assert engine.submitted == ["a", "b"]
    assert exchange.num_unfinished == 2


async def test_each_connection_gets_its_own_outputs_only() -> None:
    exchange = Exchange(RecordingEngine(), max_requests=8)
    one, two = exchange.connect(), exchange.connect()
    exchange.handle(one, batch("a"))
    exchange.handle(two, batch("b"))
    exchange.route(frame(token("a"), token("b", final=True), token("nobody's")))
    assert await one.take(0) == (token("a"),)
    assert await two.take(0) == (token("b", final=True),)
    assert exchange.num_unfinished == 1


async def test_a_closed_connection_aborts_all_its_requests_and_no_others() -> None:
    engine = RecordingEngine()
    exchange = Exchange(engine, max_requests=8)
    one, two = exchange.connect(), exchange.connect()
    exchange.handle(one, batch("a", "b"))
    exchange.handle(two, batch("c"))
    exchange.disconnect(one)
    assert sorted(engine.aborted) == ["a", "b"]
    assert exchange.num_unfinished == 1


async def test_an_abort_reaches_only_requests_of_the_same_connection() -> None:
    engine = RecordingEngine()
    exchange = Exchange(engine, max_requests=8)
    one, two = exchange.connect(), exchange.connect()
    exchange.handle(one, batch("a"))
    exchange.handle(two, AbortBatch(("a", "unknown")))
    assert engine.aborted == []
    exchange.route(frame(token("a")))
    exchange.handle(one, AbortBatch(("a",)))
    assert engine.aborted == ["a"]
    assert await one.take(0) == ()


async def test_more_requests_than_there_is_room_for_are_refused_as_full() -> None:
    engine = RecordingEngine()
    exchange = Exchange(engine, max_requests=2)
    connection = exchange.connect()
    exchange.handle(connection, batch("a", "b", "c"))
    assert engine.submitted == ["a", "b"]
    assert await faults(connection) == [("c", FaultKind.WORKER_FULL)]
    exchange.route(frame(token("a", final=True)))
    exchange.handle(connection, batch("d"))
    assert engine.submitted == ["a", "b", "d"]


async def crowded() -> tuple[Exchange, Outbox, Outbox]:
    """Room for two: one connection has both, the other was refused."""
    exchange = Exchange(RecordingEngine(), max_requests=2)
    busy, late = exchange.connect(), exchange.connect()
    exchange.handle(busy, batch("a", "b"))
    exchange.handle(late, batch("c"))
    assert await faults(late) == [("c", FaultKind.WORKER_FULL)]
    return exchange, busy, late


async def test_what_becomes_free_goes_to_the_connection_that_waits_for_its_share() -> None:
    exchange, busy, late = await crowded()
    exchange.route(frame(token("a", final=True)))
    await busy.take(0)
    exchange.handle(busy, batch("d"))
    assert await faults(busy) == [("d", FaultKind.WORKER_FULL)]
    exchange.handle(late, batch("c"))
    assert await faults(late) == []
    assert exchange.num_unfinished == 2


@pytest.mark.parametrize("how", ["finished", "aborted"])
async def test_a_connection_that_waits_for_room_is_told_of_it_at_once(how: str) -> None:
    exchange, busy, late = await crowded()
    if how == "finished":
        exchange.route(frame(token("a", final=True)))
    else:
        exchange.handle(busy, AbortBatch(("a",)))
    async with asyncio.timeout(1):
        assert await late.take(5) == ()


async def test_a_connection_that_does_not_come_back_for_its_share_leaves_it_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module, "CLAIM_S", 0.01)
    exchange, busy, _ = await crowded()
    await asyncio.sleep(0.02)
    exchange.route(frame(token("a", final=True)))
    await busy.take(0)
    exchange.handle(busy, batch("d"))
    assert await faults(busy) == []


async def test_a_connection_that_waited_and_ended_claims_nothing() -> None:
    exchange, busy, late = await crowded()
    exchange.disconnect(late)
    exchange.route(frame(token("a", final=True)))
    await busy.take(0)
    exchange.handle(busy, batch("d"))
    assert await faults(busy) == []


async def test_an_id_in_use_by_another_connection_is_refused_and_the_other_goes_on() -> None:
    engine = RecordingEngine()
    exchange = Exchange(engine, max_requests=8)
    one, two = exchange.connect(), exchange.connect()
    exchange.handle(one, batch("a"))
    exchange.handle(two, batch("a"))
    assert await faults(two) == [("a", FaultKind.INVALID_REQUEST)]
    exchange.route(frame(token("a")))
    assert await one.take(0) == (token("a"),)
    assert engine.aborted == []


async def test_an_id_used_twice_by_one_connection_ends_once_and_runs_nowhere() -> None:
    engine = RecordingEngine()
    exchange = Exchange(engine, max_requests=8)
    connection = exchange.connect()
    exchange.handle(connection, batch("a", "b", "a"))
    assert engine.submitted == ["b"]
    assert await faults(connection) == [("a", FaultKind.INVALID_REQUEST)]
    assert exchange.num_unfinished == 1


async def test_a_draining_worker_refuses_new_requests_and_is_idle_when_the_last_one_ends() -> None:
    exchange = Exchange(RecordingEngine(), max_requests=8)
    connection = exchange.connect()
    exchange.handle(connection, batch("a"))
    exchange.refuse_new()
    exchange.handle(connection, batch("b"))
    assert await faults(connection) == [("b", FaultKind.WORKER_DRAINING)]
    assert not await exchange.wait_until_idle(0)
    connection.note_written()
    exchange.route(frame(token("a", final=True)))
    assert not await exchange.wait_until_idle(0), "the last output has not left yet"
    await connection.take(0)
    assert not await exchange.wait_until_idle(0)
    connection.note_written()
    assert await exchange.wait_until_idle(0)


async def test_a_connection_that_ends_with_unread_outputs_does_not_hold_up_a_drain() -> None:
    exchange = Exchange(RecordingEngine(), max_requests=8)
    connection = exchange.connect()
    exchange.handle(connection, batch("a"))
    exchange.route(frame(token("a", final=True)))
    exchange.disconnect(connection)
    assert await exchange.wait_until_idle(0)
