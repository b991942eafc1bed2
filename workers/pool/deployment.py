"""One deployed model: keeps as many replicas alive as it should have, and describes them.

Each wanted replica is a task of its own: bring one up, watch it, remove what is left of it, wait if it failed too
often, again. Nothing here affects another model. The manager owns deployments; Ray is behind `ReplicaHost`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from model_registry.contract import ModelView, ReplicaState, ReplicaView
from workers.pool.back_off import BackOff
from workers.pool.replica import Replica, ReplicaFailedError, ReplicaHost
from workers.pool.state import PoolOptions, WantedModel

logger = logging.getLogger(__name__)

MakeHost = Callable[[str], ReplicaHost]
"""From a replica's id to its place in the cluster."""


@dataclass(slots=True)
class _Slot:
    """One wanted replica: the present attempt at it, and what came before."""

    replica: Replica
    back_off: BackOff
    last_failure: str = ""
    task: asyncio.Task[None] | None = None

    @property
    def view(self) -> ReplicaView:
        view = self.replica.view
        if view.state in (ReplicaState.PENDING, ReplicaState.STARTING) and self.last_failure:
            attempt = self.back_off.num_failures + 1
            return replace(view, detail=f"{view.detail} (attempt {attempt}; the last ended: {self.last_failure})")
        return view


class Deployment:
    """The replicas of one model."""

    def __init__(
        self,
        model: WantedModel,
        options: Callable[[], PoolOptions],
        make_host: MakeHost,
        on_change: Callable[[], None],
    ) -> None:
        """`options` gives the present ones: a later deployment may change them."""
        self.model = model
        self._options = options
        self._make_host = make_host
        self._on_change = on_change
        self._slots: list[_Slot] = []

    @property
    def view(self) -> ModelView:
        lengths = [slot.replica.max_model_len for slot in self._slots if slot.replica.max_model_len is not None]
        return ModelView(
            entry=self.model.entry,
            created=self.model.created,
            replicas=tuple(slot.view for slot in self._slots),
            max_model_len=lengths[0] if lengths else None,
        )

    @property
    def pids(self) -> dict[str, int]:
        """Process of each replica that has one, on whatever node."""
        replicas = (slot.replica for slot in self._slots)
        return {replica.replica_id: replica.pid for replica in replicas if replica.pid is not None}

    def start(self, adopted: Sequence[str] = ()) -> None:
        """Bring the replicas up, beginning with those that live already, by their ids."""
        num_replicas = self.model.entry.num_replicas
        fresh = [self._new_id() for _ in range(num_replicas - len(adopted))]
        for replica_id in (*adopted[:num_replicas], *fresh):
            slot = _Slot(self._new_replica(replica_id), BackOff())
            slot.task = asyncio.create_task(self._keep_alive(slot), name=f"replica-slot {self.model.entry.model_id}")
            self._slots.append(slot)
        self._on_change()

    async def wait_until_settled(self, timeout_s: float) -> None:
        """Until every replica is known to be serving, loading or lost, at most `timeout_s`."""
        waits = [asyncio.ensure_future(slot.replica.settled.wait()) for slot in self._slots]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
        for wait in waits:
            wait.cancel()

    async def stop(self) -> None:
        """Let the replicas finish their requests, then remove them all."""
        tasks = [slot.task for slot in self._slots if slot.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._retire(slot.replica) for slot in self._slots))
        self._slots.clear()
        self._on_change()

    async def _keep_alive(self, slot: _Slot) -> None:
        """One wanted replica for ever: attempt after attempt."""
        while True:
            delay_s = await self._attempt(slot)
            await self._clean_up(slot.replica)
            if delay_s:
                slot.replica.announce_retry(delay_s)
                await asyncio.sleep(delay_s)
            slot.replica = self._new_replica(self._new_id())
            self._on_change()

    async def _attempt(self, slot: _Slot) -> float:
        """Run the present replica to its end; returns how long to wait before the next."""
        replica = slot.replica
        try:
            await replica.run()
        except ReplicaFailedError as error:
            slot.last_failure = str(error)
        except Exception as error:
            # An edge: whatever Ray may raise, this model's next attempt must still be made, and others not be touched.
            logger.exception("replica %s ended unexpectedly", replica.replica_id)
            slot.last_failure = f"{type(error).__name__}: {error}"
            replica.fail(slot.last_failure)
        if replica.served_s is None:
            return slot.back_off.after_failed_start()
        return slot.back_off.after_death(replica.served_s)

    async def _clean_up(self, replica: Replica) -> None:
        """Remove what is left of a failed replica."""
        try:
            await replica.remove()
        except Exception:
            # An edge, as above. What could not be removed is found by its name when a manager starts next.
            logger.exception("replica %s could not be removed", replica.replica_id)

    async def _retire(self, replica: Replica) -> None:
        try:
            await replica.retire(self._options().drain_timeout_s)
        except Exception:
            # An edge, as above: a replica that cannot be drained must still be removed.
            logger.exception("replica %s could not be drained", replica.replica_id)
        await self._clean_up(replica)

    def _new_id(self) -> str:
        return f"{self.model.deployment_id}-{secrets.token_hex(3)}"

    def _new_replica(self, replica_id: str) -> Replica:
        return Replica(
            replica_id,
            self._make_host(replica_id),
            load_timeout_s=self._options().load_timeout_s,
            place_timeout_s=self.model.entry.scaling.pg_timeout_s,
            on_change=self._on_change,
        )
