"""A replica of two DeepSpeed ranks in a real pool: it answers, and the loss of any rank rebuilds the whole group."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import grpc
import psutil
import pytest

from model_registry.contract import (
    CHANNEL_METHOD,
    CONTRACT_VERSION,
    SECRET_METADATA,
    VERSION_METADATA,
    GenerationRequest,
    ModelView,
    PoolView,
    SamplingParams,
    SubmitBatch,
    TokenPrompt,
    decode_frame,
    encode_command,
)
from model_registry.schema import RegistryEntry
from tests.support.live_pool import ended, generate, num_ready, until
from workers.pool.client import PoolClient
from workers.pool.state import PoolOptions

MODEL = "tests/sharded"
GROUP_TIMEOUT_S = 4.0
LOAD_S = 100
OPTIONS = PoolOptions(load_timeout_s=LOAD_S, drain_timeout_s=2)

pytestmark = pytest.mark.timeout(400)


def entry(folder: Path) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": MODEL,
                "initialization": {
                    "hf_model_id": str(folder),
                    "initializer": {"type": "DeepSpeed", "dtype": "float32", "group_timeout_s": GROUP_TIMEOUT_S},
                },
                "generation": {"max_batch_size": 4, "kv_cache_tokens": 4096},
            },
            "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 1, "num_workers": 2},
        }
    )


def is_ready(models: dict[str, ModelView]) -> bool:
    return num_ready(models[MODEL]) == 1


def rank_process() -> psutil.Process:
    """The process of the rank beyond the first: Ray names it after its class."""
    # The iterator reads the command lines itself, and leaves out of those that have just died what cannot be read.
    (process,) = (one for one in psutil.process_iter(["cmdline"]) if "RankActor" in "".join(one.info["cmdline"] or ()))
    return process


def address_of(view: PoolView) -> str:
    (replica,) = view.models[0].replicas
    assert replica.address is not None
    return replica.address


async def test_a_group_answers_and_the_loss_of_a_rank_rebuilds_it(pool: PoolClient, tiny_llama: Path) -> None:
    await pool.apply([entry(tiny_llama)], OPTIONS)
    first = await until(pool, is_ready, LOAD_S)
    answer = await generate(first, address_of(first), "the quick brown", max_tokens=16, temperature=0)
    assert answer

    killed = rank_process()
    killed.send_signal(signal.SIGKILL)
    second = await rebuilt(pool, first)
    assert await generate(second, address_of(second), "the quick brown", max_tokens=16, temperature=0) == answer

    stopped = rank_process()
    streaming = asyncio.create_task(stream_until_lost(second, stopped.pid))
    assert await streaming < GROUP_TIMEOUT_S + 5
    third = await rebuilt(pool, second)
    assert await generate(third, address_of(third), "the quick brown", max_tokens=16, temperature=0) == answer

    front = (await pool.pids())[third.models[0].replicas[0].replica_id]
    last_rank = rank_process()
    os.kill(front, signal.SIGSTOP)
    await rebuilt(pool, third)
    await ended(killed.pid, stopped.pid, front, last_rank.pid)


async def rebuilt(pool: PoolClient, before: PoolView) -> PoolView:
    """The first view with another replica that serves."""
    gone = before.models[0].replicas[0].replica_id
    return await until(
        pool,
        lambda models: is_ready(models) and models[MODEL].replicas[0].replica_id != gone,
        LOAD_S,
    )


async def stream_until_lost(view: PoolView, victim: int) -> float:
    """Stop a rank in the middle of a long answer; returns the seconds until the stream's client is told."""
    sampling = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    request = GenerationRequest(request_id="long", prompt=TokenPrompt((5, 6, 7)), sampling=sampling)
    metadata = ((SECRET_METADATA, view.secret), (VERSION_METADATA, CONTRACT_VERSION))
    async with grpc.aio.insecure_channel(address_of(view)) as channel:
        call = channel.stream_stream(CHANNEL_METHOD)(metadata=metadata)
        await call.write(encode_command(SubmitBatch((request,))))
        while not decode_frame(await call.read()).outputs:
            pass
        os.kill(victim, signal.SIGSTOP)
        stopped_at = time.monotonic()
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                assert not any(output.is_final for output in decode_frame(data).outputs)
        except grpc.aio.AioRpcError:
            return time.monotonic() - stopped_at
    raise AssertionError("the stream ended as if it were complete")
