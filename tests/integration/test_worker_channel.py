"""A worker's channel over real gRPC, in this process: who gets in, what comes out, what a lost connection costs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from model_registry.contract import (
    CHANNEL_METHOD,
    CONTRACT_VERSION,
    SECRET_METADATA,
    VERSION_METADATA,
    AbortBatch,
    FaultKind,
    FinishReason,
    Frame,
    GenerationRequest,
    SamplingParams,
    SequenceOutput,
    SubmitBatch,
    TextPrompt,
    TextSegment,
    WorkerStatus,
    decode_frame,
    encode_command,
)
from model_registry.schema import RegistryEntry
from model_registry.tool_formats import AnswerFormat
from workers.channel import MAX_MESSAGE_BYTES, ChannelServer
from workers.errors import LoadError
from workers.exchange import Exchange
from workers.report import WorkerPhase, WorkerReport
from workers.worker import SPARE_REQUESTS, Worker

SECRET = "the pool's"


def echo_entry(*, step_time_s: float = 0.0, max_batch_size: int = 4, **sizes: int) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "test/echo",
                "initialization": {"initializer": {"type": "Echo", "step_time_s": step_time_s}},
                "generation": {"max_batch_size": max_batch_size, **sizes},
            },
            "scaling_config": {"num_gpus_per_worker": 0},
        }
    )


@asynccontextmanager
async def worker(**settings: Any) -> AsyncIterator[tuple[Worker, str]]:
    one = Worker(echo_entry(**settings), "r1", SECRET, "127.0.0.1")
    try:
        yield one, await one.start()
    finally:
        await one.stop()


@asynccontextmanager
async def connection(address: str, secret: str = SECRET, version: str = CONTRACT_VERSION) -> AsyncIterator[Any]:
    options = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.stream_stream(CHANNEL_METHOD)(metadata=((SECRET_METADATA, secret), (VERSION_METADATA, version)))
        yield call
        call.cancel()


def request(request_id: str, text: str = "hello", **sampling: Any) -> GenerationRequest:
    prompt = TextPrompt((TextSegment(text, trusted=True),))
    return GenerationRequest(request_id=request_id, prompt=prompt, sampling=SamplingParams(**sampling))


async def submit(call: Any, *requests: GenerationRequest) -> None:
    await call.write(encode_command(SubmitBatch(requests)))


async def next_frame(call: Any) -> Frame:
    async with asyncio.timeout(5):
        return decode_frame(await call.read())


async def code_of(call: Any) -> grpc.StatusCode:
    """The status that the server ended the call with."""
    async with asyncio.timeout(5):
        code: grpc.StatusCode = await call.code()
    return code


async def outputs_of(call: Any, request_id: str) -> list[SequenceOutput]:
    """All outputs of a request, up to its final one."""
    outputs: list[SequenceOutput] = []
    while not outputs or not outputs[-1].is_final:
        outputs.extend(output for output in (await next_frame(call)).outputs if output.request_id == request_id)
    return outputs


async def num_busy(one: Worker) -> int:
    status = (await one.report()).status
    return status.num_running + status.num_waiting


async def wait_until_idle(one: Worker) -> None:
    async with asyncio.timeout(2):
        while await num_busy(one):  # noqa: ASYNC110  the engine is asked, as an operator would
            await asyncio.sleep(0.005)


async def test_a_request_comes_back_token_by_token_and_ends_once() -> None:
    async with worker() as (one, address), connection(address) as call:
        await submit(call, request("a", "hello"))
        outputs = await outputs_of(call, "a")
    assert "".join(output.text for output in outputs) == "hello"
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert sum(output.is_final for output in outputs) == 1
    report = await one.report()
    assert (report.phase, report.address, report.pid) == (WorkerPhase.SERVING, address, os.getpid())


async def test_requests_of_one_batch_share_frames() -> None:
    async with worker(step_time_s=0.02) as (_, address), connection(address) as call:
        await submit(call, request("a"), request("b"))
        frames = [await next_frame(call) for _ in range(4)]
    assert any({output.request_id for output in frame.outputs} == {"a", "b"} for frame in frames)


@pytest.mark.parametrize(
    ("secret", "version", "code"),
    [
        ("wrong", CONTRACT_VERSION, grpc.StatusCode.UNAUTHENTICATED),
        ("", CONTRACT_VERSION, grpc.StatusCode.UNAUTHENTICATED),
        (SECRET, "0", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_a_stranger_is_refused(secret: str, version: str, code: grpc.StatusCode) -> None:
    async with worker() as (_, address), connection(address, secret, version) as call:
        assert await code_of(call) is code


async def test_an_idle_worker_shows_that_it_lives() -> None:
    async with worker() as (_, address), connection(address) as call:
        first, second = await next_frame(call), await next_frame(call)
    assert first.outputs == second.outputs == ()


async def test_a_closed_connection_frees_its_slots() -> None:
    async with worker(step_time_s=0.01) as (one, address):
        async with connection(address) as call:
            await submit(call, request("a", "x" * 2000), request("b", "x" * 2000))
            await next_frame(call)
            assert await num_busy(one) == 2
        await wait_until_idle(one)


async def test_an_aborted_request_frees_its_slot_and_is_silent() -> None:
    async with worker(step_time_s=0.01) as (one, address), connection(address) as call:
        await submit(call, request("a", "x" * 2000))
        await next_frame(call)
        await call.write(encode_command(AbortBatch(("a", "unknown"))))
        await wait_until_idle(one)
        await submit(call, request("b", "y"))
        outputs = await outputs_of(call, "b")
    assert outputs[-1].finish_reason is FinishReason.STOP


async def test_what_is_no_command_closes_that_connection_only() -> None:
    async with worker(step_time_s=0.01) as (_, address), connection(address) as good, connection(address) as bad:
        await submit(good, request("a", "hello"))
        await bad.write(b"\xc1 no msgpack")
        assert await code_of(bad) is grpc.StatusCode.INVALID_ARGUMENT
        assert (await outputs_of(good, "a"))[-1].finish_reason is FinishReason.STOP


async def test_a_reader_that_falls_behind_still_gets_every_token() -> None:
    text = "abcdefghij" * 200
    async with worker() as (_, address), connection(address) as call:
        await submit(call, request("a", text))
        await asyncio.sleep(0.5)
        outputs = await outputs_of(call, "a")
    assert "".join(output.text for output in outputs) == text


async def test_a_full_worker_says_so_and_serves_the_rest() -> None:
    async with worker(step_time_s=0.01, max_batch_size=1) as (_, address), connection(address) as call:
        room = 2 + SPARE_REQUESTS
        await submit(call, *(request(f"r{index}", "abc") for index in range(room + 1)))
        refused = await outputs_of(call, f"r{room}")
        assert refused[-1].fault is not None
        assert refused[-1].fault.kind is FaultKind.WORKER_FULL


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing_new() -> None:
    async with worker(step_time_s=0.01) as (one, address), connection(address) as call:
        await submit(call, request("a", "x" * 20))
        await next_frame(call)
        draining = asyncio.create_task(one.drain(5))
        await asyncio.sleep(0.01)
        await submit(call, request("b"))
        refused = await outputs_of(call, "b")
        assert refused[-1].fault is not None
        assert refused[-1].fault.kind is FaultKind.WORKER_DRAINING
        assert await draining


async def test_a_start_that_is_called_twice_is_one_start() -> None:
    async with worker() as (one, address):
        assert await one.start() == address


async def test_a_report_says_how_the_models_answers_are_to_be_read() -> None:
    async with worker() as (one, _):
        assert (await one.report()).answer_format == AnswerFormat()


async def test_a_report_waits_for_news() -> None:
    one = Worker(echo_entry(), "r1", SECRET, "127.0.0.1")
    seen = (await one.report()).version
    waiting = asyncio.create_task(one.report(seen, 5))
    await asyncio.sleep(0)
    await one.start()
    assert (await waiting).version > seen
    await one.stop()
    assert await one.wait_until_stopped(0)


async def test_a_load_that_crashes_is_a_load_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("out of luck\nand of lines")

    monkeypatch.setattr("workers.worker.initializer_for", explode)
    one = Worker(echo_entry(), "r1", SECRET, "127.0.0.1")
    with pytest.raises(LoadError, match=r"^RuntimeError: out of luck$"):
        await one.start()
    report = await one.report()
    assert (report.phase, report.detail) == (WorkerPhase.FAILED, "RuntimeError: out of luck")


async def resized(one: Worker, entry: RegistryEntry) -> WorkerReport:
    """What it says once it has taken the entry's sizes, or refused them."""
    await one.reconfigure(entry)
    async with asyncio.timeout(5):
        while (report := await one.report()).is_resizing:
            await one.report(report.version, 1.0)
    return report


async def test_other_sizes_are_taken_or_refused_with_the_reason_and_the_present_ones_wanted_again() -> None:
    original = echo_entry(max_model_len=512)
    async with worker(max_model_len=512) as (one, _):
        taken = await resized(one, echo_entry(max_model_len=256, kv_cache_tokens=1024))
        assert (taken.max_model_len, taken.refusal, taken.detail) == (256, "", "")
        refused = await resized(one, echo_entry(max_model_len=512, kv_cache_tokens=64))
        assert refused.max_model_len == 256
        assert refused.refusal == refused.detail
        assert refused.refusal.startswith("serves with its earlier sizes: the KV cache has room for 64 tokens")
        again = await resized(one, echo_entry(max_model_len=256, kv_cache_tokens=1024))
        assert (again.max_model_len, again.refusal, again.detail) == (256, "", "")
        back = await resized(one, original)
        assert (back.max_model_len, back.refusal) == (512, "")


async def test_sizes_that_are_refused_end_an_earlier_change_that_still_waits() -> None:
    async with worker(step_time_s=0.01, max_model_len=512) as (one, address), connection(address) as call:
        await submit(call, request("long", "x" * 100, max_tokens=80, ignore_eos=True))
        await next_frame(call)
        while not await num_busy(one):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await one.reconfigure(echo_entry(step_time_s=0.01, max_model_len=128))
        assert (await one.report()).is_resizing
        refused = await resized(one, echo_entry(step_time_s=0.01, max_model_len=512, kv_cache_tokens=64))
        assert await num_busy(one), "the change would have waited for this one"
        assert refused.refusal
        await wait_until_idle(one)
        after = await one.report()
        assert (after.max_model_len, after.refusal) == (512, refused.refusal)


class SilentEngine:
    """Takes requests and answers none: the test does."""

    def __init__(self) -> None:
        self.aborted: list[str] = []

    def submit(self, requests: Iterable[GenerationRequest]) -> None:
        pass

    def abort(self, request_ids: Iterable[str]) -> None:
        self.aborted.extend(request_ids)

    def status(self) -> WorkerStatus:
        return WorkerStatus()


@asynccontextmanager
async def silent_worker() -> AsyncIterator[tuple[SilentEngine, Exchange, str]]:
    engine = SilentEngine()
    exchange = Exchange(engine, max_requests=8)
    server = ChannelServer(exchange, SECRET)
    try:
        yield engine, exchange, await server.start("127.0.0.1")
    finally:
        await server.stop()


async def submitted(call: Any, exchange: Exchange, *request_ids: str) -> None:
    await submit(call, *map(request, request_ids))
    async with asyncio.timeout(5):
        while exchange.num_unfinished < len(request_ids):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def said(request_id: str, text: str, *, final: bool = True) -> SequenceOutput:
    reason = FinishReason.STOP if final else None
    return SequenceOutput(request_id=request_id, text=text, finish_reason=reason)


async def test_outputs_that_are_too_large_together_leave_in_several_frames() -> None:
    names = ("a", "b", "c", "d")
    text = "x" * (MAX_MESSAGE_BYTES * 2 // 5)
    async with silent_worker() as (_, exchange, address), connection(address) as call:
        await submitted(call, exchange, *names)
        exchange.route(Frame(outputs=tuple(said(name, text) for name in names), status=WorkerStatus()))
        seen: list[tuple[str, bool]] = []
        while len(seen) < len(names):
            seen.extend((output.request_id, output.text == text) for output in (await next_frame(call)).outputs)
    assert seen == [(name, True) for name in names]


@pytest.mark.parametrize("final", [True, False])
async def test_an_output_that_is_too_large_ends_its_own_request_only(final: bool) -> None:
    async with silent_worker() as (engine, exchange, address), connection(address) as call:
        await submitted(call, exchange, "large", "small")
        large = said("large", "x" * MAX_MESSAGE_BYTES, final=final)
        exchange.route(Frame(outputs=(large, said("small", "hi")), status=WorkerStatus()))
        (ended,) = await outputs_of(call, "large")
        exchange.route(Frame(outputs=(said("large", "more"),), status=WorkerStatus()))
        await submitted(call, exchange, "next")
        exchange.route(Frame(outputs=(said("next", "hi"),), status=WorkerStatus()))
        (after,) = await outputs_of(call, "next")
        assert engine.aborted == ([] if final else ["large"])
    assert after.text == "hi"
    assert ended.fault is not None
    assert (ended.fault.kind, ended.fault.param) == (FaultKind.INVALID_REQUEST, "prompt")
    assert f"at most {MAX_MESSAGE_BYTES}" in ended.fault.message
