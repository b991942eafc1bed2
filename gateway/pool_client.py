"""The pool as its Ray manager tells it: the only file of the gateway that knows Ray.

Long-polls the manager actor and outlives it: while the manager is away, the last view stands. Everything in Ray's API
that may block (joining the cluster, finding an actor) happens in a thread, never on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import RayError

from model_registry.contract import MANAGER_NAME, POOL_NAMESPACE, LoadReport, PoolView

logger = logging.getLogger(__name__)

WATCH_S: Final = 30.0
ANSWER_GRACE_S: Final = 10.0
"""How much later than asked for a manager may answer before it counts as gone."""
FIRST_BACK_OFF_S: Final = 0.2
MAX_BACK_OFF_S: Final = 5.0

T = TypeVar("T")


class PoolConnectionError(Exception):
    """The Ray cluster cannot be joined; one line says which and why."""


class RayPoolClient:
    """Follows the pool's manager in `namespace` of the Ray cluster at `address`; None is the local cluster."""

    def __init__(self, address: str | None = None, namespace: str = POOL_NAMESPACE) -> None:
        self._address = address
        self._namespace = namespace
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray-client")
        self._manager: Any = None
        self._owns_connection = False

    async def connect(self) -> None:
        """Joins the cluster, unless this process already did. Raises `PoolConnectionError`."""
        await self._in_thread(self._join)

    async def views(self) -> AsyncIterator[PoolView]:
        await self.connect()
        version = -1
        back_off_s = FIRST_BACK_OFF_S
        while True:
            try:
                view = await self._watch(version)
            except (RayError, TimeoutError, ValueError, ConnectionError) as error:
                # ValueError: Ray's word for an actor that does not exist (yet).
                logger.info("the pool's manager does not answer (%s), asking again", type(error).__name__)
                self._manager = None
                # A new manager counts from its own start, so whatever it says is news.
                version = -1
                await asyncio.sleep(back_off_s)
                back_off_s = min(2 * back_off_s, MAX_BACK_OFF_S)
                continue
            back_off_s = FIRST_BACK_OFF_S
            if view.version != version:
                version = view.version
                yield view

    async def report(self, reports: Sequence[LoadReport]) -> None:
        manager = self._manager
        if manager is None:
            return
        try:
            answer = await self._in_thread(lambda: manager.report.remote(tuple(reports)).future())
            async with asyncio.timeout(ANSWER_GRACE_S):
                await asyncio.wrap_future(answer)
        except (RayError, TimeoutError) as error:
            logger.info("the pool's manager does not take the load (%s)", type(error).__name__)

    async def close(self) -> None:
        if self._owns_connection:
            await self._in_thread(ray.shutdown)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _watch(self, version: int) -> PoolView:
        if self._manager is None:
            self._manager = await self._in_thread(lambda: ray.get_actor(MANAGER_NAME, namespace=self._namespace))
        answer = await self._in_thread(lambda: self._manager.watch.remote(version, WATCH_S).future())
        async with asyncio.timeout(WATCH_S + ANSWER_GRACE_S):
            view: PoolView = await asyncio.wrap_future(answer)
        return view

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _join(self) -> None:
        if ray.is_initialized():
            return
        try:
            ray.init(address=self._address or "auto", namespace=self._namespace, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self._address or "this machine"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PoolConnectionError(
                f"cannot join the Ray cluster at {where}: {reason}; start one with `ray start --head`, "
                "or set AVIARY_RAY_ADDRESS"
            ) from None
        self._owns_connection = True
