"""One Ray on this machine for all integration tests that need a pool, and a fresh pool for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from aviary.ray_cluster import RayCluster
from workers.pool.client import PoolClient
from workers.pool.ray_host import living_replicas


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    one = asyncio.run(RayCluster.start_local(num_cpus=8))
    yield one
    asyncio.run(one.close())


@pytest_asyncio.fixture
async def pool(cluster: RayCluster) -> AsyncIterator[PoolClient]:
    client = await PoolClient.find_or_start()
    yield client
    await client.shutdown(20)
    assert await asyncio.to_thread(living_replicas) == set()
