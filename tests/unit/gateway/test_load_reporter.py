"""What the pool hears of the load, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from gateway import load_reporter
from gateway.dispatch import Dispatcher
from gateway.load_reporter import LoadReporter
from gateway.metrics import Metrics
from gateway.ticket import Submission
from model_registry.contract import LoadReport, ModelView, ReplicaView, SamplingParams, TextPrompt, TextSegment
from model_registry.schema import RegistryEntry
from tests.support.scripted_pool import MODEL, ScriptedWorker, StaticPool, connect_to, model_view, pool_view, replica


def model(*replicas: ReplicaView, **autoscaling: float) -> ModelView:
    entry = RegistryEntry.model_validate(
        {
            "deployment_config": {"autoscaling_config": {"min_replicas": 0, "max_replicas": 2, **autoscaling}},
            "model_config": {"model_id": MODEL, "initialization": {"initializer": {"type": "Echo"}}},
        }
    )
    return msgspec.structs.replace(model_view(*replicas, of=entry), may_wait=True)


@asynccontextmanager
async def reporting(
    view: ModelView, workers: dict[str, ScriptedWorker]
) -> AsyncIterator[tuple[Dispatcher, StaticPool]]:
    pool = StaticPool(pool_view(view))
    dispatcher = Dispatcher(connect_to(workers), Metrics(CollectorRegistry()), request_timeout_s=30)
    dispatcher.update(pool_view(view))
    task = asyncio.create_task(LoadReporter(dispatcher, pool).run())
    try:
        yield dispatcher, pool
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await dispatcher.close()


def submit(dispatcher: Dispatcher) -> None:
    dispatcher.submit(
        Submission(
            model_id=MODEL,
            prompts=(TextPrompt((TextSegment("hi", trusted=True),)),),
            sampling=(SamplingParams(),),
            prompt_param="prompt",
            trace_id="req",
            received_at=time.monotonic(),
        )
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def last(pool: StaticPool) -> LoadReport:
    return pool.reports[-1]


async def test_a_request_for_a_sleeping_model_is_reported_at_once_and_again_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_reporter, "STARVED_INTERVAL_S", 0.02)
    async with reporting(model(metrics_interval_s=3600.0, look_back_period_s=3600.0), {}) as (dispatcher, pool):
        await asyncio.sleep(0.05)
        assert pool.reports == []
        submit(dispatcher)
        await until(lambda: len(pool.reports) >= 3)
        assert last(pool).queued[-1][1] == 1
        assert last(pool).running == {}


async def test_the_load_of_each_replica_is_reported_every_interval() -> None:
    worker = ScriptedWorker()
    view = model(replica("a"), metrics_interval_s=0.02, look_back_period_s=10.0)
    async with reporting(view, {"a": worker}) as (dispatcher, pool):
        submit(dispatcher)
        await until(lambda: bool(pool.reports) and last(pool).running["a"][-1][1] == 1)
        assert last(pool).queued[-1][1] == 0
        assert last(pool).gateway_id == pool.reports[0].gateway_id


async def test_a_model_whose_number_of_replicas_is_fixed_is_not_reported() -> None:
    view = model(replica("a"), min_replicas=2, metrics_interval_s=0.01, look_back_period_s=1.0)
    async with reporting(view, {"a": ScriptedWorker()}) as (dispatcher, pool):
        submit(dispatcher)
        await asyncio.sleep(0.05)
        assert pool.reports == []


async def test_a_report_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_reporter, "STARVED_INTERVAL_S", 0.02)
    monkeypatch.setattr(load_reporter, "LONGEST_PAUSE_S", 0.02)
    async with reporting(model(), {}) as (dispatcher, pool):
        reports = pool.report
        num_failures = 0

        async def report(some: object) -> None:
            nonlocal num_failures
            num_failures += 1
            if num_failures == 1:
                raise LookupError("not expected")
            await reports(some)  # type: ignore[arg-type]

        monkeypatch.setattr(pool, "report", report)
        submit(dispatcher)
        await until(lambda: bool(pool.reports))
