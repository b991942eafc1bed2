"""Runs the batches of a folder: takes over those that nobody runs, keeps their leases, ends them when they are lost.

Any number of gateway processes do so beside each other, and none knows of the others: a lease in the database says
whose a batch is, and is over soon after a process has died or hangs. Since there is no other way to hear of what
another process did, the database is looked at now and then, and at once when this one knows better.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from typing import Final

from gateway.batch_run import BatchRun
from gateway.batch_store import BatchStore, LeaseLostError
from gateway.dispatch import Dispatcher
from gateway.file_store import FileStore
from gateway.line_store import LineStore
from gateway.metrics import Metrics
from gateway.protocol.batches import Batch, BatchStatus
from gateway.store_file import StoreError

logger = logging.getLogger(__name__)

LEASE_S: Final = 15.0
"""How long the batches of a process that died stay with it."""
LOOKS_PER_LEASE: Final = 5
SWEEP_INTERVAL_S: Final = 60.0
BACK_OFF_S: Final = 5.0
"""Before a batch that could not be run goes to anybody again."""
MAX_RUNS: Final = 64
"""Batches that one process runs at once; the others wait, or another process has them."""

NewRun = Callable[[Batch, str], BatchRun]
"""A run of the batch by an owner."""


class BatchRunner:
    """Of one gateway process."""

    def __init__(
        self,
        batches: BatchStore,
        lines: LineStore,
        files: FileStore,
        dispatcher: Dispatcher,
        metrics: Metrics,
        new_run: NewRun,
    ) -> None:
        self._batches = batches
        self._lines = lines
        self._files = files
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._new_run = new_run
        self._owner = uuid.uuid4().hex
        self._runs: dict[str, BatchRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A batch has come, or one was cancelled."""
        self._woken.set()

    async def run(self) -> None:
        """For ever; ends by cancellation, and gives back what it has."""
        sweeping = asyncio.create_task(self._sweep_now_and_then(), name="sweep batches")
        try:
            while True:
                self._woken.clear()
                try:
                    await self._look()
                except Exception:  # the edge of a task nobody awaits: without it batches would stand still in silence
                    logger.exception("batches cannot be looked at; trying again")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEASE_S / LOOKS_PER_LEASE):
                        await self._woken.wait()
        finally:
            tasks = [sweeping, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        await self._keep()
        if not self._dispatcher.is_draining:
            for batch in await self._batches.claim(self._owner, lease_s=LEASE_S, limit=MAX_RUNS - len(self._runs)):
                self._start(batch)
        for status, count in (await self._batches.num_by_status()).items():
            self._metrics.batches(status.value, count)

    async def _sweep_now_and_then(self) -> None:
        """Beside the looks: leases do not wait until there is nothing left to remove."""
        while True:
            for sweep in (self._lines.sweep, self._batches.sweep, self._files.sweep):
                try:
                    await sweep()
                except Exception:  # the edge of a task nobody awaits: without it nothing would be removed any more
                    logger.exception("what is over cannot be removed; trying again")
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _keep(self) -> None:
        """Renew all leases; end what was lost or cancelled."""
        running = dict(self._runs)
        statuses = await self._batches.renew(self._owner, lease_s=LEASE_S)
        for batch_id, run in running.items():
            if batch_id not in statuses:
                self._end(batch_id)
            elif statuses[batch_id] is BatchStatus.CANCELLING:
                run.cancel()
        for batch_id in statuses.keys() - running.keys() - self._runs.keys():
            # Claimed by an answer that came too late to be heard.
            await self._batches.release(batch_id, self._owner)

    def _end(self, batch_id: str) -> None:
        """It is somebody else's, or over: its run would find out by itself, but later."""
        if batch_id in self._tasks:
            self._tasks[batch_id].cancel()

    def _start(self, batch: Batch) -> None:
        run = self._runs[batch.id] = self._new_run(batch, self._owner)
        self._tasks[batch.id] = asyncio.create_task(self._run(run), name=f"run {batch.id}")

    async def _run(self, run: BatchRun) -> None:
        logger.info("%s is run here", run.batch_id)
        try:
            await run.run()
        except* LeaseLostError:
            logger.warning("%s is run by another gateway, or over", run.batch_id)
        except* Exception:  # the edge of a task nobody awaits
            logger.exception("%s cannot be run now; trying again", run.batch_id)
            await asyncio.sleep(BACK_OFF_S)
        finally:
            try:
                await self._batches.release(run.batch_id, self._owner)
            except StoreError as error:
                logger.warning("the lease of %s runs out by itself: %s", run.batch_id, error)
            del self._runs[run.batch_id]
            del self._tasks[run.batch_id]
            self.wake()
