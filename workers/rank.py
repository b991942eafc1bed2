"""The Ray actor of a rank beyond the first: loads its share of the model and runs what rank 0 runs.

It serves nobody: gateways talk to the replica's front worker, which is rank 0. When the group ends, or a step fails
here, the process ends at once, so that the pool manager replaces the whole group. Imports neither torch nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading

from model_registry.schema import RegistryEntry
from workers.engine.runner import ModelRunner
from workers.errors import DeviceLostError
from workers.group import FollowerGroup, join_group
from workers.initializers import initializer_for
from workers.report import ReportBoard, WorkerPhase, WorkerReport
from workers.runners.tensor_parallel import follow
from workers.worker import ENGINE_FAILED_EXIT_CODE

logger = logging.getLogger(__name__)


class Rank:
    """One rank's process. Every method is called through Ray, on the actor's event loop."""

    def __init__(self, entry: RegistryEntry, replica_id: str, secret: str, host: str, rank: int) -> None:
        self._entry = entry
        self._replica_id = replica_id
        self._secret = secret
        self._host = host
        self._rank = rank
        self._board = ReportBoard()
        self._starting: asyncio.Task[None] | None = None

    async def start(self, leader_address: str) -> None:
        """Join the group and load; called again, it joins the first call."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(leader_address), name="rank-start")
        await asyncio.shield(self._starting)

    async def report(self) -> WorkerReport:
        return self._board.report

    async def wait_until_stopped(self, timeout_s: float) -> bool:
        """Never stopped but by the end of its process; a caller that waits here sees that at once."""
        await asyncio.sleep(timeout_s)
        return False

    async def _start(self, leader_address: str) -> None:
        self._board.begin_loading()
        with self._board.failures_told(f"rank {self._rank} of replica {self._replica_id}"):
            runner, group = await asyncio.to_thread(self._load, leader_address)
        threading.Thread(target=self._follow, args=(runner, group), name="rank", daemon=True).start()
        self._board.tell(phase=WorkerPhase.SERVING, detail="serving")

    def _load(self, leader_address: str) -> tuple[ModelRunner, FollowerGroup]:
        num_ranks = self._entry.scaling.num_workers
        group = join_group(leader_address, self._secret, self._rank, num_ranks, self._host)
        return initializer_for(self._entry, group).load(self._entry, self._board.progress).runner, group

    def _follow(self, runner: ModelRunner, group: FollowerGroup) -> None:
        try:
            follow(runner, group)
        except DeviceLostError as error:
            logger.critical("rank %d of replica %s ends: %s", self._rank, self._replica_id, error)
            logging.shutdown()
            os._exit(ENGINE_FAILED_EXIT_CODE)
