"""One deployed model: brings its replicas to the number and the revision that are wanted, and describes them.

Each replica that is to live is a task of its own: bring one up, watch it, remove what is left of it, wait if it failed
too often, again. What to start and what to retire `rollout.plan` says, asked again after every change. Nothing here
affects another model. The manager owns deployments; Ray is behind `ReplicaHost`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from model_registry.contract import ModelView, ReplicaState, ReplicaView
from model_registry.schema import RegistryEntry
from model_registry.tool_formats import AnswerFormat
from workers.pool.autoscaling import Autoscaler
from workers.pool.back_off import BackOff
from workers.pool.eviction import Resident
from workers.pool.placement import Placement, placement_for
from workers.pool.replica import Replica, ReplicaFailedError, ReplicaHost
from workers.pool.rollout import Candidate, plan
from workers.pool.state import PoolOptions, Revision, WantedModel

logger = logging.getLogger(__name__)

LEAST_STAY_S: Final = 30.0
"""A replica with requests keeps its place for so long at least, however many other models want it."""

MakeHost = Callable[[RegistryEntry, str], ReplicaHost]
"""From an entry and a replica's id to its place in the cluster."""


@dataclass(slots=True, eq=False)
class _Slot:
    """One replica that is to live: the present attempt at it, and what came before."""

    revision: Revision
    replica: Replica
    back_off: BackOff
    is_adopted: bool = False
    """It lived before this deployment was here to see it."""
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
        self.target = model.entry.num_replicas
        """Replicas that are wanted."""
        self._options = options
        self._make_host = make_host
        self._on_change = on_change
        self._slots: list[_Slot] = []
        self._retiring: dict[asyncio.Task[None], _Slot] = {}
        self._awaits_successor = False
        """A revision that served is being replaced, and no replica of the new one has served yet."""
        self._reconcile_is_due = False
        self._is_stopped = False
        self._answer_formats: dict[str, AnswerFormat] = {}
        """Of each revision that has served; still known while no replica is left to say it."""

    @property
    def model_id(self) -> str:
        return self.model.model_id

    @property
    def view(self) -> ModelView:
        slots = (*self._slots, *self._retiring.values())
        lengths = [slot.replica.max_model_len for slot in slots if slot.replica.max_model_len is not None]
        return ModelView(
            entry=self._served.entry,
            created=self.model.created,
            replicas=tuple(slot.view for slot in slots),
            max_model_len=min(lengths, default=None),
            answer_format=self._answer_formats.get(self._served.revision_id),
            num_wanted=self.target,
            num_outdated=sum(not self._is_current(slot) or slot.replica.is_outdated for slot in slots),
            may_wait=self._may_wait,
        )

    @property
    def pids(self) -> dict[str, int]:
        """Process of each replica that has one, on whatever node."""
        replicas = (slot.replica for slot in self._slots)
        return {replica.replica_id: replica.pid for replica in replicas if replica.pid is not None}

    @property
    def serving_ids(self) -> frozenset[str]:
        """Ids of the replicas that take requests."""
        return frozenset(slot.replica.replica_id for slot in self._slots if slot.replica.is_serving)

    @property
    def serves_current(self) -> bool:
        """Whether a replica of what is wanted takes requests."""
        return any(slot.replica.is_serving and self._is_current(slot) for slot in self._slots)

    @property
    def placement(self) -> Placement:
        """What one more replica reserves."""
        return placement_for(self.model.entry)

    @property
    def lacks_room(self) -> bool:
        """Whether a replica waits for a place on busy nodes, and no older one of the model is about to make room."""
        serves_outdated = any(slot.replica.is_serving and not self._is_current(slot) for slot in self._slots)
        return any(slot.replica.lacks_room for slot in self._slots) and not serves_outdated

    @property
    def is_retiring(self) -> bool:
        """Whether a replica is on its way out, whose resources will be free."""
        return bool(self._retiring)

    @property
    def living_revisions(self) -> tuple[Revision, ...]:
        """The current one, and each earlier one that has replicas, oldest first."""
        slots = (*self._slots, *self._retiring.values())
        used = {slot.revision.revision_id for slot in slots} | {self.model.current.revision_id}
        return tuple(revision for revision in self.model.revisions if revision.revision_id in used)

    def start(self, adopted: Sequence[str] = ()) -> None:
        """Bring the replicas up, beginning with those that live already, by their ids.

        The number of living ones is what was last wanted, within the entry's bounds.
        """
        for replica_id in adopted:
            owners = [revision for revision in self.model.revisions if revision.owns(replica_id)]
            self._add_slot(owners[0], replica_id, is_adopted=True)
        if adopted:
            bounds = self.model.entry.deployment.autoscaling_config
            self.target = min(max(len(adopted), bounds.min_replicas), bounds.max_replicas)
        self._reconcile()

    def update(self, model: WantedModel) -> None:
        """Follow a changed registry file: by new replicas where its last revision is new, else in those that live."""
        if model.current.revision_id != self.model.current.revision_id:
            self._awaits_successor = bool(self.serving_ids)
        self.model = model
        bounds = model.entry.deployment.autoscaling_config
        self.target = min(max(self.target, bounds.min_replicas), bounds.max_replicas)
        for slot in tuple(self._slots):
            if not self._is_current(slot):
                continue
            if slot.replica.state is ReplicaState.FAILED:
                self._retire(slot)  # the change may be what it was waiting for: another one tries at once
                continue
            slot.revision = model.current
            slot.replica.reconfigure(model.entry)
        self._reconcile()

    def scale_to(self, target: int) -> None:
        """Want another number of replicas."""
        if target != self.target:
            logger.info("%s: %d replicas are wanted, not %d", self.model_id, target, self.target)
            self.target = target
            self._reconcile()

    def follow(self, scaler: Autoscaler, now: float) -> None:
        """Want as many replicas as the load says."""
        serving = self.serving_ids
        self.scale_to(scaler.decide(now, num_running=len(serving), target=self.target, replica_ids=serving))

    async def residents(self, *, busy_too: bool) -> list[Resident]:
        """Replicas beyond `min_replicas` that could make room: idle ones, or also those that have served a while.

        One that loads is never among them.
        """
        num_kept = self.model.entry.deployment.autoscaling_config.min_replicas
        serving = sorted((slot.replica for slot in self._slots if slot.replica.is_serving), key=_latest_use_first)
        found = [one for one in serving[num_kept:] if not one.num_ongoing or (busy_too and _has_stayed(one))]
        reserved = await asyncio.gather(*(replica.reserved() for replica in found))
        return [
            Resident(
                model_id=self.model_id,
                replica_id=replica.replica_id,
                reserved=bundles,
                last_used_at=replica.last_used_at,
            )
            for replica, bundles in zip(found, reserved, strict=True)
        ]

    def evict(self, replica_id: str) -> None:
        """Want one replica less: this one, whose resources another model gets."""
        for slot in self._slots:
            if slot.replica.replica_id == replica_id:
                logger.info("%s: replica %s makes room for another model", self.model_id, replica_id)
                self.target = max(0, self.target - 1)
                self._retire(slot)
                self._on_change()
                return

    async def wait_until_settled(self, timeout_s: float) -> None:
        """Until every replica is known to be serving, loading or lost, at most `timeout_s`."""
        waits = [asyncio.ensure_future(slot.replica.settled.wait()) for slot in self._slots]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
        for wait in waits:
            wait.cancel()

    async def stop(self) -> None:
        """Let the replicas finish their requests, then remove them all."""
        self._is_stopped = True
        for slot in tuple(self._slots):
            self._retire(slot)
        await asyncio.gather(*self._retiring)

    # What gateways are told

    @property
    def _served(self) -> Revision:
        """The newest revision that serves; the wanted one when none does."""
        serving = {slot.revision.revision_id for slot in self._slots if slot.replica.is_serving}
        ready = [revision for revision in self.model.revisions if revision.revision_id in serving]
        return ready[-1] if ready else self.model.current

    @property
    def _may_wait(self) -> bool:
        """Requests need not be refused while no replica serves: one is on its way, or comes as soon as it is wanted."""
        sleeps = self.model.entry.deployment.autoscaling_config.min_replicas == 0
        hopeless = any(slot.last_failure or slot.replica.has_no_place for slot in self._slots)
        return (sleeps or self._awaits_successor) and not hopeless and not self._is_stopped

    # Reconciliation

    def _note_change(self) -> None:
        """A replica changed: look again, but only once for what changes together."""
        for slot in self._slots:
            if slot.replica.answer_format is not None:
                self._answer_formats[slot.revision.revision_id] = slot.replica.answer_format
        if not self._reconcile_is_due:
            self._reconcile_is_due = True
            asyncio.get_running_loop().call_soon(self._reconcile)
        self._on_change()

    def _reconcile(self) -> None:
        self._reconcile_is_due = False
        if self._is_stopped:
            return
        slots = tuple(self._slots)
        if self.serves_current:
            self._awaits_successor = False
        wanted = plan(
            [self._candidate(slot) for slot in slots],
            self.target,
            is_draining=any(not self._is_current(slot) for slot in self._retiring.values()),
        )
        for index in wanted.retired:
            self._retire(slots[index])
        for _ in range(wanted.num_new):
            self._add_slot(self.model.current, self._new_id(self.model.current))
        if wanted.retired or wanted.num_new:
            self._on_change()

    def _is_current(self, slot: _Slot) -> bool:
        return slot.revision.revision_id == self.model.current.revision_id

    def _candidate(self, slot: _Slot) -> Candidate:
        is_unknown = slot.is_adopted and not slot.replica.settled.is_set()
        return Candidate(
            is_current=self._is_current(slot),
            state=ReplicaState.READY if is_unknown else slot.replica.state,  # whoever may serve is not given up
            lacks_room=slot.replica.lacks_room,
            num_ongoing=slot.replica.num_ongoing,
        )

    def _add_slot(self, revision: Revision, replica_id: str, *, is_adopted: bool = False) -> None:
        slot = _Slot(revision, self._new_replica(revision, replica_id), BackOff(), is_adopted)
        slot.task = asyncio.create_task(self._keep_alive(slot), name=f"replica-slot {self.model_id}")
        self._slots.append(slot)

    def _retire(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        task = asyncio.create_task(self._end(slot), name=f"retirement {slot.replica.replica_id}")
        self._retiring[task] = slot
        task.add_done_callback(self._note_retired)

    def _note_retired(self, task: asyncio.Task[None]) -> None:
        del self._retiring[task]
        for slot in self._slots:
            # Its resources are free: whether there is room is to be seen anew, before another one is retired for it.
            slot.replica.lacks_room = False
        self._note_change()

    async def _end(self, slot: _Slot) -> None:
        """Drain what serves, and leave nothing behind."""
        if slot.task is not None:
            slot.task.cancel()
            await asyncio.gather(slot.task, return_exceptions=True)
        try:
            await slot.replica.retire(self._options().drain_timeout_s)
        except Exception:
            # An edge, as in `_attempt`: a replica that cannot be drained must still be removed.
            logger.exception("replica %s could not be drained", slot.replica.replica_id)
        await self._clean_up(slot.replica)

    # The life of one slot

    async def _keep_alive(self, slot: _Slot) -> None:
        """Attempt after attempt, for ever."""
        while True:
            delay_s = await self._attempt(slot)
            await self._clean_up(slot.replica)
            if delay_s:
                slot.replica.announce_retry(delay_s)
                await asyncio.sleep(delay_s)
            slot.replica = self._new_replica(slot.revision, self._new_id(slot.revision))
            slot.is_adopted = False
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
        """Remove what is left of a replica."""
        try:
            await replica.remove()
        except Exception:
            # An edge, as above. What could not be removed is found by its name when a manager starts next.
            logger.exception("replica %s could not be removed", replica.replica_id)

    @staticmethod
    def _new_id(revision: Revision) -> str:
        return f"{revision.revision_id}-{secrets.token_hex(3)}"

    def _new_replica(self, revision: Revision, replica_id: str) -> Replica:
        return Replica(
            replica_id,
            revision.entry,
            self._make_host(revision.entry, replica_id),
            load_timeout_s=self._options().load_timeout_s,
            on_change=self._note_change,
        )


def _latest_use_first(replica: Replica) -> float:
    return -replica.last_used_at


def _has_stayed(replica: Replica) -> bool:
    return (replica.served_s or 0.0) >= LEAST_STAY_S
