"""The pool as the command line uses it: finds or starts the manager and calls it, in plain asyncio.

Unwraps Ray's errors: what the manager refuses comes back as `PoolError`. Blocking look-ups run on threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from model_registry.contract import MANAGER_NAME, POOL_NAMESPACE, PoolView
from model_registry.schema import RegistryEntry
from workers.pool.errors import PoolError
from workers.pool.manager import PoolManager
from workers.pool.state import Applied, PoolOptions

ANSWER_TIMEOUT_S: Final = 60.0
WATCH_S: Final = 30.0
RETRY_PAUSE_S: Final = 0.5


class PoolClient:
    """One manager. Every method raises `PoolError` when the pool refuses or cannot be reached."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    @classmethod
    async def find(cls) -> PoolClient | None:
        """The cluster's pool, if it has one."""
        try:
            return cls(await asyncio.to_thread(ray.get_actor, MANAGER_NAME, POOL_NAMESPACE))
        except ValueError:
            return None

    @classmethod
    async def find_or_start(cls) -> PoolClient:
        """The cluster's pool; a new, empty one if it has none."""
        return cls(await asyncio.to_thread(_find_or_start))

    async def apply(self, entries: Sequence[RegistryEntry], options: PoolOptions) -> Applied:
        """Exactly these models are deployed."""
        applied: Applied = await self._call("apply", ANSWER_TIMEOUT_S, list(entries), options)
        return applied

    async def add(self, entries: Sequence[RegistryEntry], options: PoolOptions) -> Applied:
        """These models are deployed as they are given, and all others as they were.

        Less is told as new than was, should the manager have been restarted while it did this.
        """
        applied: Applied = await self._call("add", ANSWER_TIMEOUT_S, list(entries), options)
        return applied

    async def remove(self, model_ids: Sequence[str], timeout_s: float) -> None:
        await self._call("remove", timeout_s, list(model_ids))

    async def view(self) -> PoolView:
        view: PoolView = await self._call("view", ANSWER_TIMEOUT_S)
        return view

    async def pids(self) -> dict[str, int]:
        pids: dict[str, int] = await self._call("pids", ANSWER_TIMEOUT_S)
        return pids

    async def views(self) -> AsyncIterator[PoolView]:
        """The present view, then every newer one; waits out a restart of the manager."""
        version = 0
        while True:
            try:
                async with asyncio.timeout(WATCH_S + ANSWER_TIMEOUT_S):
                    view: PoolView = await self._manager.watch.remote(version, WATCH_S)
            except ActorUnavailableError:
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            except (TimeoutError, RayError) as error:
                raise _explained(error, "watch", WATCH_S + ANSWER_TIMEOUT_S) from error
            if view.version != version:
                version = view.version
                yield view

    async def shutdown(self, timeout_s: float) -> None:
        """Remove all models, then the manager itself."""
        await self._call("shutdown", timeout_s)
        await asyncio.to_thread(ray.kill, self._manager, no_restart=True)

    async def _call(self, method: str, timeout_s: float, *arguments: object) -> Any:
        """Waits out a restart of the manager. Each method says what shall be, not what to do, so it may be repeated."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await getattr(self._manager, method).remote(*arguments)
                    except ActorUnavailableError:
                        await asyncio.sleep(RETRY_PAUSE_S)
        except (TimeoutError, RayError) as error:
            raise _explained(error, method, timeout_s) from error


def _explained(error: Exception, method: str, timeout_s: float) -> PoolError:
    """What a failed call of the manager means to people."""
    if isinstance(error, RayTaskError):
        refused = isinstance(error.cause, PoolError)
        return PoolError(*error.cause.args) if refused else PoolError(f"the pool manager failed: {error.cause}")
    if isinstance(error, TimeoutError):
        return PoolError(f"the pool manager did not answer `{method}` within {timeout_s:g} s; try again")
    return PoolError(f"the pool manager is gone ({type(error).__name__}); try again")


def _find_or_start() -> Any:
    # On the head node, where the cluster's own state is; it needs no CPU of it.
    options = {
        "name": MANAGER_NAME,
        "namespace": POOL_NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},
    }
    return ray.remote(PoolManager).options(**options).remote()
