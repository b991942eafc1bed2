"""What a command does when another cluster takes the place of the one that it joined."""

from __future__ import annotations

import asyncio

import pytest

from aviary import cluster_commands
from aviary.cluster_commands import joined
from aviary.errors import CommandError
from aviary.settings import DeploySettings


class FakeCluster:
    """Replaced when the test says so."""

    address = "head:6379"

    def __init__(self) -> None:
        self.replaced = asyncio.Event()
        self.is_closed = False

    @classmethod
    async def join(cls, address: str) -> FakeCluster:
        assert address == "auto"
        return cls()

    async def watch(self) -> None:
        await self.replaced.wait()

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_commands, "RayCluster", FakeCluster)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


async def sleep_in_a_replaced_cluster(seconds: float, seen: list[FakeCluster], *, ends_itself: bool) -> None:
    async with joined(DeploySettings(), ends_itself=ends_itself) as cluster:
        assert isinstance(cluster, FakeCluster)
        seen.append(cluster)
        cluster.replaced.set()
        await asyncio.sleep(seconds)


@pytest.mark.parametrize(("seconds", "ends_itself"), [(60.0, False), (0.01, True)])
async def test_a_command_whose_cluster_is_replaced_ends_and_says_why(seconds: float, ends_itself: bool) -> None:
    seen: list[FakeCluster] = []
    with pytest.raises(CommandError, match=r"another cluster has taken the place of .* at head:6379"):
        await sleep_in_a_replaced_cluster(seconds, seen, ends_itself=ends_itself)
    assert seen[0].is_closed
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def command() -> None:
        async with joined(DeploySettings()):
            await asyncio.sleep(60)

    task = asyncio.create_task(command())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
