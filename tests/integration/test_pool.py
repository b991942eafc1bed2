"""The pool on a real Ray on this machine: it comes up, heals, says why it cannot, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import pytest
import ray

from aviary.ray_cluster import RayCluster
from model_registry.contract import (
    MANAGER_NAME,
    ReplicaState,
)
from tests.support.live_pool import OPTIONS, ended, entry, generate, num_ready, until
from workers.pool.client import PoolClient
from workers.pool.errors import PoolError
from workers.pool.ray_host import living_replicas


async def test_a_killed_worker_is_replaced_and_the_other_goes_on(pool: PoolClient) -> None:
    await pool.apply([entry("test/echo", replicas=2)], OPTIONS)
    before = await until(pool, lambda models: num_ready(models["test/echo"]) == 2)
    killed, kept = before.models[0].replicas
    assert killed.address is not None
    assert await generate(before, killed.address, "hello") == "hello"
    pids = await pool.pids()
    os.kill(pids[killed.replica_id], signal.SIGKILL)
    after = await until(
        pool,
        lambda models: num_ready(models["test/echo"]) == 2 and killed not in models["test/echo"].replicas,
    )
    assert kept in after.models[0].replicas
    assert after.version > before.version
    assert (await pool.pids())[kept.replica_id] == pids[kept.replica_id]


async def test_what_ray_says_about_a_death_is_logged_and_not_printed(
    pool: PoolClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "aviary.ray_cluster")
    await pool.apply([entry("test/echo")], OPTIONS)
    before = await until(pool, lambda models: num_ready(models["test/echo"]) == 1)
    os.kill((await pool.pids())[before.models[0].replicas[0].replica_id], signal.SIGKILL)
    async with asyncio.timeout(30):
        while "Ray says: A worker died" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert "worker died" not in capfd.readouterr().out


async def test_a_worker_that_gets_sigterm_ends_soon_and_is_replaced(pool: PoolClient) -> None:
    await pool.apply([entry("test/echo")], OPTIONS)
    before = await until(pool, lambda models: num_ready(models["test/echo"]) == 1)
    (replica,) = before.models[0].replicas
    pid = (await pool.pids())[replica.replica_id]
    os.kill(pid, signal.SIGTERM)
    await ended(pid)
    await until(
        pool, lambda models: num_ready(models["test/echo"]) == 1 and replica not in models["test/echo"].replicas
    )


async def test_a_killed_manager_comes_back_with_the_same_replicas_and_no_request_notices(pool: PoolClient) -> None:
    await pool.apply([entry("test/echo", replicas=2)], OPTIONS)
    before = await until(pool, lambda models: num_ready(models["test/echo"]) == 2)
    pids = await pool.pids()
    manager = pids.pop(MANAGER_NAME)
    assert "torch" not in await asyncio.to_thread(Path(f"/proc/{manager}/maps").read_text)
    address = before.models[0].replicas[0].address
    assert address is not None
    running = asyncio.create_task(generate(before, address, "x" * 200))
    os.kill(manager, signal.SIGKILL)
    after = await until(pool, lambda models: True)
    if after.version == before.version:
        after = await until(pool, lambda models: num_ready(models["test/echo"]) == 2)
    assert await running == "x" * 200
    again = await pool.pids()
    assert again.pop(MANAGER_NAME) != manager
    assert again == pids
    final = await pool.view()
    assert final.version > before.version
    assert final.secret == before.secret
    assert sorted(r.replica_id for r in final.models[0].replicas) == sorted(
        r.replica_id for r in before.models[0].replicas
    )


async def test_whoever_asks_while_the_manager_restarts_is_answered_by_the_next_one(pool: PoolClient) -> None:
    await pool.apply([entry("test/echo")], OPTIONS)
    manager = (await pool.pids())[MANAGER_NAME]
    os.kill(manager, signal.SIGKILL)
    await ended(manager)
    assert [model.model_id for model in (await pool.view()).models] == ["test/echo"]
    assert (await pool.pids())[MANAGER_NAME] != manager


async def test_what_cannot_be_placed_or_loaded_says_why_and_leaves_the_others_alone(pool: PoolClient) -> None:
    await pool.apply(
        [
            entry("test/good"),
            entry("test/unplaceable", resources_per_worker={"instance_type_g5": 0.01}),
            entry("test/slow", load_time_s=60),
        ],
        OPTIONS,
    )
    view = await until(
        pool,
        lambda models: (
            num_ready(models["test/good"]) == 1
            and models["test/unplaceable"].replicas[0].detail.startswith("pending: ")
            and models["test/slow"].replicas[0].state is ReplicaState.FAILED
        ),
    )
    good, unplaceable, slow = (model.replicas[0] for model in view.models)
    assert unplaceable.detail == ("pending: needs {CPU: 0.5, instance_type_g5: 0.01}; no node offers instance_type_g5")
    assert "loading took more than 3 s" in slow.detail
    retried = await until(pool, lambda models: "attempt 2" in models["test/slow"].replicas[0].detail)
    assert "loading took more than 3 s" in retried.models[2].replicas[0].detail
    assert retried.models[0].replicas == (good,)


async def test_models_come_and_go_and_a_refused_change_changes_nothing(pool: PoolClient) -> None:
    await pool.apply([entry("test/one")], OPTIONS)
    view = await until(pool, lambda models: num_ready(models["test/one"]) == 1)
    with pytest.raises(PoolError, match=r"test/bad: .*hf_model_id"):
        await pool.apply([entry("test/two"), entry("test/bad", initialization={"hf_model_id": "a/b"})], OPTIONS)
    assert (await pool.view()).models == view.models, "a refused apply changes nothing"
    applied = await pool.add([entry("test/one"), entry("test/two")], OPTIONS)
    assert (applied.added, applied.unchanged) == (("test/two",), ("test/one",))
    await until(pool, lambda models: num_ready(models["test/two"]) == 1)
    gone = (await pool.pids())[view.models[0].replicas[0].replica_id]
    await pool.remove(["test/one", "test/unknown"], 20)
    assert [model.model_id for model in (await pool.view()).models] == ["test/two"]
    await ended(gone)


async def test_after_a_shutdown_no_actor_group_or_process_is_left(cluster: RayCluster) -> None:
    pool = await PoolClient.find_or_start()
    await pool.apply([entry("test/echo", replicas=2)], OPTIONS)
    await until(pool, lambda models: num_ready(models["test/echo"]) == 2)
    pids = (await pool.pids()).values()
    await pool.shutdown(20)
    assert await asyncio.to_thread(living_replicas) == set()
    assert await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True) == []
    await ended(*pids)
    assert await PoolClient.find() is None
