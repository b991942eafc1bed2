"""Routing over several real workers: what begins alike is computed once, and no replica does everything."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import openai
import pytest

from gateway.channel import GrpcChannel
from gateway.routing import RoutingPolicy, RoutingReason
from model_registry.contract import WorkerStatus
from model_registry.schema import RegistryEntry
from tests.support.live_gateway import LiveGateway
from tests.support.live_worker import LiveWorker
from tests.support.scripted_pool import SECRET, TalkingWorker, pool_view
from workers.initializers import build_engine, initializer_for

ECHO = "tests/echo"
NUM_WORKERS = 3
LONG = "All who enter here read these terms first. " * 50
"""2,150 tokens of the echo model, of at most 4,096."""


@dataclass(frozen=True, slots=True)
class Pool:
    """A gateway in front of several workers."""

    gateway: LiveGateway
    workers: Sequence[LiveWorker]

    @property
    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.gateway.url}/v1", api_key="none", max_retries=0, timeout=60)

    def statuses(self) -> list[WorkerStatus]:
        return [worker.engine_loop.status() for worker in self.workers if worker.engine_loop is not None]

    def metrics(self) -> str:
        return httpx.get(f"{self.gateway.url}/metrics").text

    def num_decisions(self, reason: RoutingReason) -> float:
        series = rf'aviary_routing_decisions_total{{model="{ECHO}",reason="{reason}"}} (\S+)'
        found = re.search(series, self.metrics())
        return float(found[1]) if found else 0.0


def run_pool(routing: RoutingPolicy) -> Iterator[Pool]:
    entry = RegistryEntry.model_validate(
        {
            "deployment_config": {"max_ongoing_requests": 32, "max_queued_requests": 256},
            "model_config": {
                "model_id": ECHO,
                "initialization": {"initializer": {"type": "Echo", "step_time_s": 0.002}},
                "generation": {"max_batch_size": 32},
            },
        }
    )
    with ExitStack() as stack:
        engines = [
            build_engine(entry, initializer_for(entry).load(entry, lambda line: None)) for _ in range(NUM_WORKERS)
        ]
        workers = [stack.enter_context(LiveWorker(engine, SECRET)) for engine in engines]
        view = workers[0].view(entry)
        replicas = tuple(
            msgspec.structs.replace(view.replicas[0], replica_id=f"worker-{number}", address=worker.address)
            for number, worker in enumerate(workers)
        )
        view = msgspec.structs.replace(view, replicas=replicas)
        gateway = LiveGateway({}, view=pool_view(view), connect=GrpcChannel, routing=routing)
        with gateway:
            links = gateway.dispatcher._lanes[ECHO].links
            while not all(link.takes_work for link in links.values()):
                time.sleep(0.01)  # also called where an event loop runs
            yield Pool(gateway, workers)


@pytest.fixture
def pool() -> Iterator[Pool]:
    yield from run_pool(RoutingPolicy.AFFINITY)


async def ask(client: openai.AsyncOpenAI, prompt: str, max_tokens: int = 4, **fields: Any) -> int:
    """The number of prompt tokens that came from a prefix cache."""
    reply = await client.completions.create(model=ECHO, prompt=prompt, max_tokens=max_tokens, **fields)
    assert reply.choices[0].text == prompt[:max_tokens]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    return reply.usage.prompt_tokens_details.cached_tokens or 0


async def test_the_second_request_of_a_long_beginning_finds_it_cached(pool: Pool) -> None:
    async with pool.client as client:
        for number in range(8):
            beginning = f"{number}. {LONG}"
            assert await ask(client, f"{beginning} And what then?") == 0
            assert await ask(client, f"{beginning} And who else?") > 2_000
    assert pool.num_decisions(RoutingReason.PREFIX) == 8


async def test_by_load_alone_a_long_beginning_is_computed_again() -> None:
    for pool in run_pool(RoutingPolicy.LOAD):
        async with pool.client as client:
            cached = [await ask(client, f"{number // 2}. {LONG}{number}") for number in range(24)]
        assert cached[1::2].count(0) > 0
        assert pool.num_decisions(RoutingReason.LOAD) == 24


async def test_a_conversation_stays_where_its_history_is(pool: Pool) -> None:
    messages: list[Any] = [{"role": "user", "content": LONG}]
    async with pool.client as client:
        for turn in range(4):
            reply = await client.chat.completions.create(model=ECHO, messages=messages, max_tokens=8)
            assert reply.usage is not None
            assert reply.usage.prompt_tokens_details is not None
            assert (reply.usage.prompt_tokens_details.cached_tokens or 0) >= (2_100 if turn else 0)
            answer = reply.choices[0].message.content
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"and {turn}?"}]


async def test_a_hot_beginning_keeps_every_worker_busy_and_is_still_cached_nearly_always(pool: Pool) -> None:
    num_requests = 240
    async with pool.client as client:
        await ask(client, LONG)
        limit = asyncio.Semaphore(60)

        async def one(number: int) -> int:
            async with limit:
                return await ask(client, f"{LONG}{number}", max_tokens=128)

        cached = await asyncio.gather(*(one(number) for number in range(num_requests)))
    generated = [status.generated_tokens_total for status in pool.statuses()]
    assert max(generated) < 1.4 * sum(generated) / NUM_WORKERS
    assert sum(num_tokens > 2_000 for num_tokens in cached) > 0.9 * num_requests
    assert pool.num_decisions(RoutingReason.PREFIX) > num_requests / 2


@pytest.mark.parametrize(
    "named",
    [
        {"extra_headers": {"x-session-id": "mine"}},
        {"extra_body": {"prompt_cache_key": "mine"}},
        {"user": "mine"},
        {"extra_headers": {"x-session-id": "mine"}, "user": "somebody else each time: {}"},
    ],
)
async def test_a_session_stays_at_its_worker_however_it_is_named(pool: Pool, named: dict[str, Any]) -> None:
    async with pool.client as client:
        for number in range(8):
            fields = named | ({"user": named["user"].format(number)} if "user" in named else {})
            await ask(client, f"question {number}", **fields)
    assert sum(status.num_steps > 0 for status in pool.statuses()) == 1
    assert pool.num_decisions(RoutingReason.SESSION) == 7
    assert "mine" not in pool.metrics()


def test_the_session_header_is_in_the_openapi_document() -> None:
    with LiveGateway({"a": TalkingWorker()}) as gateway:
        document = httpx.get(f"{gateway.url}/openapi.json").json()
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert [one["name"] for one in document["paths"][path]["post"]["parameters"]] == ["x-session-id"]
