"""Faults of the pool's parts under streaming load, each injected `--rounds` times; what came of it is counted.

Two replicas of an echo model serve clients that never pause. Whatever is done to the pool, a request either completes
or gets a typed error, and only those may get one whose worker was lost after their first token.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from model_registry.contract import MANAGER_NAME, ModelView
from model_registry.schema import RegistryEntry
from tests.support.faults import NoteFault
from tests.support.live_pool import entry, num_ready, until
from tests.support.pool_gateway import PoolGateway
from tests.support.stream_load import End, StreamLoad, stream_load
from workers.pool.client import PoolClient
from workers.pool.state import PoolOptions

MODEL = "test/echo"
NUM_REPLICAS = 2
MAX_BATCH_SIZE = 4
PROMPT = "all that was asked for, in order"
OPTIONS = PoolOptions(load_timeout_s=30, drain_timeout_s=20)
TYPED_ERROR_WITHIN_S = 1.0
HANG_ENDS_WITHIN_S = 17.0
RELOADS_PER_ROUND = 10

pytestmark = pytest.mark.timeout(600)


def served(*, step_time_s: float = 0.01, **generation: object) -> RegistryEntry:
    """An echo model of two replicas, 10 ms a token."""
    base = entry(
        MODEL, replicas=NUM_REPLICAS, initialization={"initializer": {"type": "Echo", "step_time_s": step_time_s}}
    )
    model = base.model.model_dump(exclude_unset=True)
    return RegistryEntry.model_validate(
        {
            "deployment_config": base.deployment.model_dump(exclude_unset=True),
            "model_config": {**model, "generation": {"max_batch_size": MAX_BATCH_SIZE, **generation}},
            "scaling_config": base.scaling.model_dump(exclude_unset=True),
        }
    )


def is_whole(models: dict[str, ModelView]) -> bool:
    return num_ready(models[MODEL]) == NUM_REPLICAS == len(models[MODEL].replicas)


def is_whole_without(gone: set[str]) -> Callable[[dict[str, ModelView]], bool]:
    """All replicas serve, and none of these ids is among them."""
    return lambda models: is_whole(models) and not gone & ids_of(models[MODEL])


def ids_of(model: ModelView) -> set[str]:
    return {replica.replica_id for replica in model.replicas}


@pytest_asyncio.fixture
async def load(pool: PoolClient, gateway: PoolGateway) -> AsyncIterator[StreamLoad]:
    """As many clients as the replicas run at a time, and one that waits."""
    await pool.apply([served()], OPTIONS)
    await until(pool, is_whole)
    await gateway.serves(MODEL)
    async with stream_load(gateway.url, MODEL, PROMPT, NUM_REPLICAS * MAX_BATCH_SIZE + 1) as running:
        await asyncio.sleep(1)
        yield running


async def replace_all(pool: PoolClient, by: RegistryEntry) -> None:
    before = ids_of((await until(pool, is_whole)).models[0])
    await pool.apply([by], OPTIONS)
    await until(pool, is_whole_without(before), timeout_s=60)


async def lose_a_worker(pool: PoolClient, load: StreamLoad, fault: signal.Signals, seed: int, within_s: float) -> bool:
    """Does this to one of them and waits for its successor; whether everybody got what is promised meanwhile."""
    replicas = (await until(pool, is_whole)).models[0].replicas
    victim = random.Random(seed).choice(replicas)
    pid = (await pool.pids())[victim.replica_id]
    lost_at = time.monotonic()
    os.kill(pid, fault)
    await until(pool, is_whole_without({victim.replica_id}), timeout_s=60)
    await asyncio.sleep(0.5)
    failed = [one for one in load.since(lost_at) if one.end is not End.COMPLETE]
    as_promised = [
        one for one in failed if one.end is End.TYPED_ERROR and one.num_pieces and one.at - lost_at < within_s
    ]
    if failed != as_promised or len(failed) > MAX_BATCH_SIZE:
        print(f"not as promised: {failed}")
        return False
    return True


async def test_kill_9_of_a_worker(pool: PoolClient, load: StreamLoad, rounds: int, note: NoteFault) -> None:
    """Its streams end in a typed error at once; nothing else fails; it is replaced."""
    kept = []
    for number in range(rounds):
        if number % 3 == 2:
            # A replica that dies again and again within a minute is waited with, longer each time: these are others.
            await replace_all(pool, served(step_time_s=0.01 + 0.0001 * number))
        kept.append(await lose_a_worker(pool, load, signal.SIGKILL, number, TYPED_ERROR_WITHIN_S))
    note("kill -9 of a worker", sum(kept), rounds, load.counts)
    assert all(kept)


async def test_sigstop_of_a_worker(pool: PoolClient, load: StreamLoad, rounds: int, note: NoteFault) -> None:
    """A process that hangs is noticed: its streams end, others go on, and it is replaced."""
    num_rounds = max(1, rounds // 4)
    kept = [await lose_a_worker(pool, load, signal.SIGSTOP, number, HANG_ENDS_WITHIN_S) for number in range(num_rounds)]
    note("SIGSTOP of a worker", sum(kept), num_rounds, load.counts)
    assert all(kept)


async def test_kill_9_of_the_manager(pool: PoolClient, load: StreamLoad, rounds: int, note: NoteFault) -> None:
    """No request notices, and it comes back with the same replicas."""
    before = await pool.view()
    kept = []
    for _ in range(rounds):
        os.kill((await pool.pids())[MANAGER_NAME], signal.SIGKILL)
        await until(pool, is_whole)
        await asyncio.sleep(0.5)
        after = await until(pool, is_whole)
        kept.append(ids_of(after.models[0]) == ids_of(before.models[0]) and not load.failures)
    note("kill -9 of the manager", sum(kept), rounds, load.counts)
    assert all(kept), load.failures


async def test_a_new_revision(pool: PoolClient, load: StreamLoad, rounds: int, note: NoteFault) -> None:
    """All replicas are replaced, one after the other, and no request fails."""
    kept = []
    for number in range(rounds):
        await replace_all(pool, served(step_time_s=0.011 + 0.001 * (number % 2)))
        await asyncio.sleep(0.5)
        kept.append(not load.failures)
    note("roll-out of a new revision", sum(kept), rounds, load.counts)
    assert all(kept), load.failures


async def test_changed_settings(pool: PoolClient, load: StreamLoad, rounds: int, note: NoteFault) -> None:
    """They take effect in the replicas that live, and no request fails."""
    before = ids_of((await pool.view()).models[0])
    kept = []
    for number in range(RELOADS_PER_ROUND * rounds):
        await pool.apply([served(stopping_sequences=["\0" * (1 + number % 2)])], OPTIONS)
        await asyncio.sleep(0.2)
        kept.append(ids_of((await pool.view()).models[0]) == before and not load.failures)
    note("reload of settings", sum(kept), len(kept), load.counts)
    assert all(kept), load.failures


async def test_changed_sizes(pool: PoolClient, load: StreamLoad, rounds: int, note: NoteFault) -> None:
    """Batch and KV memory of living replicas grow and shrink while they generate, and no request fails."""
    before = ids_of((await pool.view()).models[0])
    sizes = [
        {"max_batch_size": 1, "kv_cache_tokens": 512, "max_model_len": 256},
        {"max_batch_size": 2 * MAX_BATCH_SIZE, "kv_cache_tokens": 4096, "max_model_len": 512},
    ]
    kept = []
    for number in range(RELOADS_PER_ROUND * rounds):
        applied = await pool.apply([served(**sizes[number % 2])], OPTIONS)
        wanted = sizes[number % 2]["max_model_len"]
        after = await until(pool, lambda models, wanted=wanted: models[MODEL].max_model_len == wanted)  # type: ignore[misc]
        is_in_place = applied.reconfigured == (MODEL,) and ids_of(after.models[0]) == before
        kept.append(is_in_place and not load.failures)
    note("reload of sizes", sum(kept), len(kept), load.counts)
    assert all(kept), load.failures
