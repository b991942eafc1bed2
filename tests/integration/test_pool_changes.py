"""Changes of a running pool on a real Ray, under traffic that must not notice them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from model_registry.contract import ModelView, ReplicaState
from model_registry.schema import RegistryEntry
from tests.support.live_pool import OPTIONS, entry, num_ready, until
from tests.support.pool_gateway import PoolGateway
from workers.pool.client import PoolClient

MODEL = "test/echo"
WHOLE_NODE = 8
SLOWER: dict[str, Any] = {"model_config": {"initialization": {"initializer": {"step_time_s": 0.011}}}}
"""What only another replica can be."""


def changed(base: RegistryEntry, **sections: dict[str, Any]) -> RegistryEntry:
    """The entry with other values, which stand beside the old ones of each section."""
    given = base.model_dump(exclude_unset=True, by_alias=True)
    for name, values in sections.items():
        given[name] = _merged(given.get(name, {}), values)
    return RegistryEntry.model_validate(given)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {
        **old,
        **{key: _merged(old.get(key, {}), new[key]) if isinstance(new[key], dict) else new[key] for key in new},
    }


def sleeping(model_id: str, **scaling: Any) -> RegistryEntry:
    """An echo model that starts at nothing."""
    autoscaling = {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 0.5, "metrics_interval_s": 0.2}
    sections = {"deployment_config": {"autoscaling_config": {**autoscaling, "look_back_period_s": 0.5}}}
    return changed(entry(model_id, **scaling), **sections)


@dataclass
class Traffic:
    """Requests one after the other, as fast as they are answered."""

    statuses: list[int] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)

    async def run(self, http: httpx.AsyncClient, model: str) -> None:
        while True:
            response = await http.post("/v1/completions", json={"model": model, "prompt": "hello", "max_tokens": 8})
            self.statuses.append(response.status_code)
            self.texts.add(response.text if response.is_error else response.json()["choices"][0]["text"])


@contextlib.asynccontextmanager
async def traffic(gateway: PoolGateway, *, num_clients: int = 4) -> AsyncIterator[Traffic]:
    """Ends with the proof that no request failed."""
    made = Traffic()
    await gateway.serves(MODEL)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        clients = [asyncio.create_task(made.run(http, MODEL)) for _ in range(num_clients)]
        await asyncio.sleep(0.3)
        yield made
        await asyncio.sleep(0.3)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    assert len(made.statuses) > num_clients
    assert set(made.statuses) == {200}, made.texts


def revisions(model: ModelView) -> set[str]:
    return {replica.replica_id.split("-")[0] for replica in model.replicas}


async def test_settings_change_in_the_replicas_that_live(pool: PoolClient, gateway: PoolGateway) -> None:
    base = entry(MODEL, replicas=2)
    await pool.apply([base], OPTIONS)
    before = await until(pool, lambda models: num_ready(models[MODEL]) == 2)
    async with traffic(gateway) as made:
        stops = changed(base, model_config={"generation": {"stopping_sequences": ["l"], "max_input_tokens": 60}})
        assert (await pool.apply([stops], OPTIONS)).reconfigured == (MODEL,)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
            async with asyncio.timeout(10):
                while made.texts != {"hello", "he"}:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await pool.apply([changed(stops, model_config={"generation": {"max_input_tokens": 50}})], OPTIONS)
            long = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 51, "max_tokens": 1})
            assert long.status_code == 400
            assert "at most 50 tokens" in long.text
    after = await pool.view()
    assert [one.replica_id for one in after.models[0].replicas] == [one.replica_id for one in before.models[0].replicas]


async def test_sizes_change_in_the_replicas_that_live(pool: PoolClient, gateway: PoolGateway) -> None:
    base = entry(MODEL)
    await pool.apply([base], OPTIONS)
    before = await until(pool, lambda models: num_ready(models[MODEL]) == 1)
    assert before.models[0].max_model_len == 4096
    async with traffic(gateway):
        sizes = {"max_batch_size": 4, "max_model_len": 128, "kv_cache_tokens": 1024}
        smaller = changed(base, model_config={"generation": sizes})
        assert (await pool.apply([smaller], OPTIONS)).reconfigured == (MODEL,)
        after = await until(pool, lambda models: models[MODEL].max_model_len == 128)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
            long = await http.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 128})
            assert long.status_code == 400
            assert "maximum context length is 128 tokens" in long.text
        # More than its KV memory of now can hold; it says so and serves on with what it has.
        impossible = changed(smaller, model_config={"generation": {"max_model_len": 2048}})
        assert (await pool.apply([impossible], OPTIONS)).reconfigured == (MODEL,)
        await until(pool, lambda models: "serves with its earlier sizes" in models[MODEL].replicas[0].detail)
        await pool.apply([base], OPTIONS)
        await until(pool, lambda models: models[MODEL].max_model_len == 4096)
    assert [one.replica_id for one in after.models[0].replicas] == [one.replica_id for one in before.models[0].replicas]


async def test_new_replicas_take_over_from_old_ones_and_no_request_fails(
    pool: PoolClient, gateway: PoolGateway
) -> None:
    base = entry(MODEL, replicas=2, num_cpus_per_worker=0.1)
    await pool.apply([base], OPTIONS)
    before = await until(pool, lambda models: num_ready(models[MODEL]) == 2)
    async with traffic(gateway):
        slower = changed(base, **SLOWER)
        assert (await pool.apply([slower], OPTIONS)).replaced == (MODEL,)
        after = await until(
            pool, lambda models: num_ready(models[MODEL]) == 2 and len(models[MODEL].replicas) == 2
            and not revisions(models[MODEL]) & revisions(before.models[0])
        )  # fmt: skip
    assert after.models[0].entry == slower


async def test_on_a_full_node_the_only_replica_makes_room_and_requests_wait_for_its_successor(
    pool: PoolClient, gateway: PoolGateway
) -> None:
    base = entry(MODEL, num_cpus_per_worker=WHOLE_NODE)
    await pool.apply([base], OPTIONS)
    before = await until(pool, lambda models: num_ready(models[MODEL]) == 1)
    async with traffic(gateway):
        await pool.apply([changed(base, **SLOWER)], OPTIONS)
        await until(
            pool,
            lambda models: num_ready(models[MODEL]) == 1 and not revisions(models[MODEL]) & revisions(before.models[0]),
        )


async def test_a_sleeping_model_wakes_for_a_request_and_falls_asleep_again(
    pool: PoolClient, gateway: PoolGateway
) -> None:
    await pool.apply([sleeping(MODEL, load_time_s=0.5)], OPTIONS)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        await gateway.knows(MODEL)
        card = (await http.get(f"/v1/models/{MODEL}")).json()
        assert (card["state"], card["reason"]) == ("sleeping", "it sleeps until a request comes")
        assert (await http.get("/ready")).status_code == 200
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 8}
        answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        assert (await pool.view()).models[0].num_wanted == 1, "one wake-up for all"
    await until(pool, lambda models: not models[MODEL].replicas)


async def test_replicas_follow_the_load_up_and_down(pool: PoolClient, gateway: PoolGateway) -> None:
    follows = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 2.0,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 1.0,
        "metrics_interval_s": 0.2,
        "look_back_period_s": 1.0,
    }
    base = changed(entry(MODEL, num_cpus_per_worker=0.1), model_config={"generation": {"max_batch_size": 4}})
    await pool.apply([changed(base, deployment_config={"autoscaling_config": follows})], OPTIONS)
    await until(pool, lambda models: num_ready(models[MODEL]) == 1)
    async with traffic(gateway, num_clients=6):
        await until(pool, lambda models: num_ready(models[MODEL]) == 3)
    await until(pool, lambda models: len(models[MODEL].replicas) == 1)


async def test_models_larger_together_than_the_node_take_turns(pool: PoolClient, gateway: PoolGateway) -> None:
    """Each takes the whole node: the one used least lately is drained for the one that is asked."""
    names = ("test/a", "test/b", "test/c")
    keeps = {"autoscaling_config": {"downscale_delay_s": 3600.0}}
    await pool.apply(
        [changed(sleeping(name, num_cpus_per_worker=WHOLE_NODE), deployment_config=keeps) for name in names], OPTIONS
    )
    async with httpx.AsyncClient(base_url=gateway.url, timeout=40) as http:
        for name in names:
            await gateway.knows(name)
        for name in (*names, names[0]):
            answer = await http.post("/v1/completions", json={"model": name, "prompt": "hello", "max_tokens": 8})
            assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, "hello")
    view = await pool.view()
    states = {model.model_id: [one.state for one in model.replicas] for model in view.models}
    assert states["test/a"] == [ReplicaState.READY]


async def test_what_no_node_can_hold_is_refused_with_what_is_missing(pool: PoolClient, gateway: PoolGateway) -> None:
    await pool.apply([sleeping(MODEL, resources_per_worker={"instance_type_g5": 0.01})], OPTIONS)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:
        await gateway.knows(MODEL)
        answer = await http.post("/v1/completions", json={"model": MODEL, "prompt": "hello", "max_tokens": 8})
    assert answer.status_code == 503
    assert "no node offers instance_type_g5" in answer.json()["error"]["message"]
    assert "retry-after" in answer.headers
