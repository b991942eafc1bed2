"""Where replicas are placed, on a real cluster of several nodes: strategies, parts of GPUs, nodes of a kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import ray
from ray.util.placement_group import placement_group_table

from aviary.ray_cluster import RayCluster
from model_registry.contract import ModelView, ReplicaView
from model_registry.schema import RegistryEntry
from tests.support.live_pool import OPTIONS, entry, num_ready, until
from tests.support.ray_head import end_all, processes_of, start_node
from workers.pool.client import PoolClient

NUM_NODES = 3
"""Of two CPUs each; the last has the GPU and is of the kind `g5`."""
PLACED_WITHIN_S = 10.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": 2}))
        head = asyncio.run(RayCluster.start_local(num_cpus=2))
    folder = head._temp_dir
    assert folder is not None
    own = {process.pid for process in processes_of(folder)}
    try:
        for offer in (["--num-cpus=2"], ["--num-cpus=2", "--num-gpus=1", '--resources={"instance_type_g5": 1}']):
            start_node(f"--address={head.address}", *offer, RAY_AUTH_MODE="token")
        yield head
    finally:
        end_all(lambda: [process for process in processes_of(folder) if process.pid not in own])
        asyncio.run(head.close())


@pytest_asyncio.fixture
async def pool(cluster: RayCluster) -> AsyncIterator[PoolClient]:
    client = await PoolClient.find_or_start()
    yield client
    await client.shutdown(20)


def group_of(num_workers: int, strategy: str) -> RegistryEntry:
    """A model of several ranks; its weights do not exist, but it must be placed before that matters."""
    model = {
        "model_id": "test/ranks",
        "initialization": {
            "hf_model_id": "/nowhere",
            "initializer": {"type": "DeepSpeed", "dtype": "float32"},
        },
    }
    scaling = {"num_workers": num_workers, "num_gpus_per_worker": 0, "placement_strategy": strategy}
    return RegistryEntry.model_validate({"model_config": model, "scaling_config": scaling})


async def nodes_of_bundles() -> list[str]:
    """The node of each bundle of the one replica that there is."""
    async with asyncio.timeout(PLACED_WITHIN_S):
        while True:
            groups = await asyncio.to_thread(placement_group_table)
            placed = [group["bundles_to_node_id"] for group in groups.values() if group["state"] == "CREATED"]
            if placed:
                (bundles,) = placed
                return list(bundles.values())
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("strategy", "num_workers", "num_nodes"),
    [("PACK", 2, 1), ("PACK", 3, 2), ("STRICT_PACK", 2, 1), ("SPREAD", 3, 3), ("STRICT_SPREAD", 3, 3)],
)
async def test_ranks_are_placed_as_the_strategy_says(
    pool: PoolClient, strategy: str, num_workers: int, num_nodes: int
) -> None:
    await pool.apply([group_of(num_workers, strategy)], OPTIONS)
    nodes = await nodes_of_bundles()
    assert (len(nodes), len(set(nodes))) == (num_workers, num_nodes)


@pytest.mark.parametrize(
    ("strategy", "num_workers", "reason"),
    [
        ("STRICT_PACK", 3, "needs 3 of {CPU: 1}; largest node offers CPU: 2"),
        ("STRICT_SPREAD", 4, "needs 4 of {CPU: 1}; only 3 of the 4 nodes it must spread over fit"),
        ("SPREAD", 7, "needs 7 of {CPU: 1}; "),
    ],
)
async def test_ranks_that_no_nodes_can_hold_say_what_they_need_and_what_there_is(
    pool: PoolClient, strategy: str, num_workers: int, reason: str
) -> None:
    await pool.apply([group_of(num_workers, strategy)], OPTIONS)
    await until(pool, lambda models: reason in only_replica(models["test/ranks"]).detail)


def only_replica(model: ModelView) -> ReplicaView:
    (replica,) = model.replicas
    return replica


def small(model_id: str, **more: Any) -> RegistryEntry:
    return entry(model_id, **{"num_cpus_per_worker": 0.25, **more})


async def test_replicas_share_nodes_and_parts_of_a_gpu_and_one_too_many_waits_for_it(pool: PoolClient) -> None:
    half = small("test/half", replicas=3, num_gpus_per_worker=0.5)
    many = small("test/many", replicas=8)
    await pool.apply([half, many], OPTIONS)
    view = await until(
        pool,
        lambda models: (
            num_ready(models["test/many"]) == 8
            and num_ready(models["test/half"]) == 2
            and any("busy now" in replica.detail for replica in models["test/half"].replicas)
        ),
    )
    (waiting,) = [one.detail for model in view.models for one in model.replicas if "busy now" in one.detail]
    assert waiting.startswith("pending: needs {CPU: 0.25, GPU: 0.5}; fits node ")


async def test_a_model_lives_on_nodes_of_its_kind(pool: PoolClient) -> None:
    kind = {"instance_type_g5": 0.01}
    await pool.apply([small("test/kind", replicas=2, resources_per_worker=kind)], OPTIONS)
    await until(pool, lambda models: num_ready(models["test/kind"]) == 2)
    groups = await asyncio.to_thread(placement_group_table)
    placed = [group["bundles_to_node_id"] for group in groups.values() if group["state"] == "CREATED"]
    (node,) = {node for bundles in placed for node in bundles.values()}
    resources = {one["NodeID"]: one["Resources"] for one in await asyncio.to_thread(ray.nodes)}
    assert resources[node]["instance_type_g5"] == 1
