"""The pool client against a real Ray cluster and a manager that comes, changes, dies and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import ray

from gateway.pool_client import RayPoolClient
from model_registry.contract import MANAGER_NAME, PoolView
from tests.support.scripted_pool import model_view, pool_view, replica

NAMESPACE = "test-gateway-pool-client"
WAIT_S = 30


class _Manager:
    """As much of the pool's manager as a gateway sees."""

    def __init__(self, view: PoolView) -> None:
        self._view = view
        self._changed = asyncio.Event()

    async def watch(self, version: int, timeout_s: float) -> PoolView:
        if self._view.version <= version:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        return self._view

    async def show(self, view: PoolView) -> None:
        self._view = view
        self._changed.set()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, namespace=NAMESPACE, log_to_driver=False)
    yield
    ray.shutdown()


def start_manager(view: PoolView) -> Any:
    return ray.remote(num_cpus=0)(_Manager).options(name=MANAGER_NAME, namespace=NAMESPACE).remote(view)


async def next_view(views: AsyncIterator[PoolView]) -> PoolView:
    return await asyncio.wait_for(anext(views), WAIT_S)


@pytest.mark.filterwarnings("default")  # Ray's own
async def test_views_follow_the_manager_through_its_changes_and_its_death(cluster: None) -> None:
    first = pool_view(model_view(replica("a")), version=1)
    second = pool_view(model_view(replica("a"), replica("b")), version=2)
    client = RayPoolClient(namespace=NAMESPACE)
    views = client.views()
    early = asyncio.create_task(next_view(views))  # the manager is not there yet
    await asyncio.sleep(0.5)
    manager = start_manager(first)
    assert await early == first
    manager.show.remote(second)
    assert await next_view(views) == second
    later = asyncio.create_task(next_view(views))
    await asyncio.sleep(0.5)
    ray.kill(manager)
    await asyncio.sleep(0.5)
    assert not later.done()
    successor = start_manager(first)  # Ray ends an actor that nobody holds
    assert await later == first
    ray.kill(successor)
    await client.close()
