"""Fixtures over a real Ray, one for each file of tests: a process can have one at a time, and a start takes seconds.

The conftest of a folder whose tests want them imports them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from aviary.ray_cluster import RayCluster
from tests.support.pool_gateway import PoolGateway, pool_gateway
from workers.pool.client import PoolClient
from workers.pool.ray_host import living_replicas

NUM_CPUS = 8
"""Of the cluster's one node."""
ACCELERATOR = "TESTED"
"""The one type of accelerator that the cluster's node says it has."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": NUM_CPUS, f"accelerator_type:{ACCELERATOR}": 1}))
        patch.setenv("RAY_USAGE_STATS_ENABLED", os.environ.get("RAY_USAGE_STATS_ENABLED", "0"))
        one = asyncio.run(RayCluster.start_local(num_cpus=NUM_CPUS))
    yield one
    asyncio.run(one.close())


@pytest_asyncio.fixture
async def gateway(pool: PoolClient) -> AsyncIterator[PoolGateway]:
    async with pool_gateway() as one:
        yield one


@pytest_asyncio.fixture
async def pool(cluster: RayCluster) -> AsyncIterator[PoolClient]:
    client = await PoolClient.find_or_start()
    yield client
    await client.shutdown(20)
    assert await asyncio.to_thread(living_replicas) == set()
