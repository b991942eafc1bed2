"""Several gateways in front of one worker, over real channels: how much they put on it together, and who is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import patch

import pytest
from prometheus_client import CollectorRegistry

from gateway.channel import GrpcChannel
from gateway.dispatch import Dispatcher
from gateway.errors import QueueFullError
from gateway.metrics import Metrics
from gateway.ticket import Submission
from model_registry.contract import ReplicaState, ReplicaView, SamplingParams, TextPrompt, TextSegment
from model_registry.schema import RegistryEntry
from tests.support.scripted_pool import SECRET, model_view, pool_view
from workers.exchange import Exchange
from workers.worker import SPARE_REQUESTS, Worker

ONGOING = 4
QUEUED = 20
MODEL = "test/echo"
TEXT = "twelve bytes"


def echo_entry() -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "deployment_config": {"max_ongoing_requests": ONGOING, "max_queued_requests": QUEUED},
            "model_config": {
                "model_id": MODEL,
                "initialization": {"initializer": {"type": "Echo", "step_time_s": 0.005}},
                "generation": {"max_batch_size": ONGOING},
            },
            "scaling_config": {"num_gpus_per_worker": 0},
        }
    )


@contextmanager
def peak_of_unfinished() -> Iterator[list[int]]:
    """How many requests a worker has, after every command of any gateway."""
    seen: list[int] = []
    handle = Exchange.handle

    def spy(exchange: Exchange, connection: object, command: object) -> None:
        handle(exchange, connection, command)  # type: ignore[arg-type]
        seen.append(exchange.num_unfinished)

    with patch.object(Exchange, "handle", spy):
        yield seen


@asynccontextmanager
async def gateways(count: int) -> AsyncIterator[list[Dispatcher]]:
    """All connected to the same worker."""
    worker = Worker(echo_entry(), "r1", SECRET, "127.0.0.1")
    ready = ReplicaView(replica_id="r1", state=ReplicaState.READY, address=await worker.start())
    dispatchers = [Dispatcher(GrpcChannel, Metrics(CollectorRegistry()), request_timeout_s=60) for _ in range(count)]
    try:
        for dispatcher in dispatchers:
            dispatcher.update(pool_view(model_view(ready, of=echo_entry())))
        async with asyncio.timeout(10):
            while not all(dispatcher.can_serve for dispatcher in dispatchers):  # noqa: ASYNC110  it has no event for it
                await asyncio.sleep(0.01)
        yield dispatchers
    finally:
        await asyncio.gather(*(dispatcher.close() for dispatcher in dispatchers))
        await worker.stop()


async def generate(dispatcher: Dispatcher) -> str:
    prompt = TextPrompt((TextSegment(TEXT, trusted=True),))
    stream = dispatcher.submit(
        Submission(
            model_id=MODEL,
            prompts=(prompt,),
            sampling=(SamplingParams(),),
            prompt_param="prompt",
            trace_id="test",
            received_at=time.monotonic(),
        )
    )
    try:
        return "".join([output.text async for _, output in stream])
    finally:
        stream.close()


@pytest.mark.parametrize(
    ("num_gateways", "bound"),
    [(1, ONGOING), (2, 2 * ONGOING), (9, 2 * ONGOING + SPARE_REQUESTS)],
    ids=["one", "two", "more than the worker admits"],
)
async def test_all_gateways_together_put_no_more_on_a_worker_than_is_documented(num_gateways: int, bound: int) -> None:
    with peak_of_unfinished() as unfinished:
        async with gateways(num_gateways) as dispatchers:
            answers = await asyncio.gather(
                *(generate(dispatcher) for dispatcher in dispatchers for _ in range(ONGOING + QUEUED))
            )
    assert set(answers) == {TEXT}
    assert max(unfinished) == bound


async def test_each_gateway_queues_for_itself_and_refuses_only_what_is_beyond() -> None:
    async with gateways(2) as dispatchers:
        accepted = [
            asyncio.create_task(generate(dispatcher)) for dispatcher in dispatchers for _ in range(ONGOING + QUEUED)
        ]
        await asyncio.sleep(0)
        for dispatcher in dispatchers:
            with pytest.raises(QueueFullError):
                await generate(dispatcher)
        assert set(await asyncio.gather(*accepted)) == {TEXT}


async def test_a_gateway_that_comes_to_a_full_worker_gets_its_turn() -> None:
    """All that a worker admits is taken by gateways that never pause; it refuses another one, but not for long."""
    async with gateways(8) as (*busy, late):

        async def keep_busy(dispatcher: Dispatcher) -> None:
            while True:
                assert await generate(dispatcher) == TEXT

        load = [asyncio.create_task(keep_busy(dispatcher)) for dispatcher in busy for _ in range(2 * ONGOING)]
        await asyncio.sleep(0.5)
        async with asyncio.timeout(3):
            assert await generate(late) == TEXT
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
