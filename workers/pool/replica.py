"""One replica's life, from its reservation to its removal, and what the pool shows of it meanwhile.

    state      what happens                                           transitions
    pending    its bundles wait for a node                            placed → starting, fail → failed
    starting   its process runs and loads the model                   served → ready, fail → failed
    ready      it serves, and is watched                              drain → draining, fail → failed
    draining   it finishes its requests and takes no new ones         (removed)
    failed     it is gone; its reason stays until the next attempt    (replaced by a new replica)

A replica is never restarted: whatever ends it, its actor and its placement group are both removed and the deployment
makes another one. Knows Ray only through `ReplicaHost`; the deployment owns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from model_registry.contract import ReplicaState, ReplicaView
from model_registry.schema import RegistryEntry
from model_registry.tool_formats import AnswerFormat
from workers.errors import WorkerError
from workers.pool.placement import PendingReason, Resources
from workers.report import WorkerPhase, WorkerReport

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 15.0
"""A call that does no work is answered sooner by any process that is not stuck."""
FIRST_PLACEMENT_NEWS_S: Final = 0.5
PLACEMENT_NEWS_S: Final = 2.0
"""Between two looks at why a replica is still pending; its placement itself is waited for, not looked at."""
PROGRESS_WAIT_S: Final = 5.0
PROGRESS_PAUSE_S: Final = 0.25
"""At least so long between two progress lines, so that a chatty load does not wake every gateway for each."""
HEALTH_PERIOD_S: Final = 2.0
"""Between two looks at one that serves and has no news, which would be heard at once. Short, as `WATCH_S` is."""
WATCH_S: Final = 2.0
"""One call that waits for the process's end, made anew while it lives. Short, because at SIGTERM Ray ends a process
only after the calls in progress."""
STALL_S: Final = 120.0
"""An engine that has work and makes no step for so long is stuck."""

TRANSITIONS: Final[dict[tuple[ReplicaState, str], ReplicaState]] = {
    (ReplicaState.PENDING, "placed"): ReplicaState.STARTING,
    (ReplicaState.STARTING, "served"): ReplicaState.READY,
    (ReplicaState.READY, "drain"): ReplicaState.DRAINING,
    (ReplicaState.PENDING, "fail"): ReplicaState.FAILED,
    (ReplicaState.STARTING, "fail"): ReplicaState.FAILED,
    (ReplicaState.READY, "fail"): ReplicaState.FAILED,
}

T = TypeVar("T")


class ReplicaFailedError(WorkerError):
    """The replica is of no use any more; one line says why."""


class WorkerClient(Protocol):
    """The worker's methods as its replica calls them. Each raises `ReplicaFailedError` when the process is gone."""

    def start(self) -> Awaitable[str]: ...

    def report(self, seen: int | None, timeout_s: float) -> Awaitable[WorkerReport]: ...

    def reconfigure(self, entry: RegistryEntry) -> Awaitable[None]: ...

    def drain(self, timeout_s: float) -> Awaitable[bool]: ...

    def stop(self) -> Awaitable[None]: ...

    def wait_until_stopped(self, timeout_s: float) -> Awaitable[bool]: ...


class ReplicaHost(Protocol):
    """What a replica needs of Ray. Nothing here blocks the event loop."""

    async def launch(self) -> WorkerClient:
        """Reserve the bundles and create the actor in them, or adopt the living one; never waits for a free node."""

    async def why_pending(self) -> PendingReason | None:
        """Why the bundles are not reserved yet; None once they are."""

    async def reserved(self) -> tuple[tuple[str, Resources], ...]:
        """Its bundles, each with the id of the node that holds it; none that are not placed."""

    async def remove(self) -> None:
        """Kill the actor and give the bundles back; harmless when either is gone."""


class Replica:
    """Brings one replica up and watches it. `run` ends by `ReplicaFailedError`, or by cancellation."""

    def __init__(
        self,
        replica_id: str,
        entry: RegistryEntry,
        host: ReplicaHost,
        *,
        load_timeout_s: float,
        on_change: Callable[[], None],
    ) -> None:
        """`entry` is what it is made from; its settings may change while it lives, see `reconfigure`."""
        self.replica_id = replica_id
        self.state = ReplicaState.PENDING
        self.detail = "waiting for resources"
        self.address: str | None = None
        self.max_model_len: int | None = None
        self.answer_format: AnswerFormat | None = None
        self.refusal = ""
        """Why its worker does not take the sizes that are wanted."""
        self.pid: int | None = None
        self.fetched_bytes = 0
        self.num_ongoing = 0
        """Requests in its engine at the last look."""
        self.last_used_at = 0.0
        """When its engine was last seen at work, or became ready; by `time.monotonic`."""
        self.lacks_room = False
        """It waits for its place, and nodes that could hold it are busy."""
        self.has_no_place = False
        """It waits for its place, and no node could ever hold it."""
        self.settled = asyncio.Event()
        """Set once an adopted replica is known to be serving, loading or lost: before that its view means nothing."""
        self._entry = entry
        self._configured: RegistryEntry | None = None
        """What the worker last took its settings from; None: it may be an adopted one that knows older ones."""
        self._is_resizing = False
        self._host = host
        self._load_timeout_s = load_timeout_s
        self._entry_changed = asyncio.Event()
        self._on_change = on_change
        self._worker: WorkerClient | None = None
        self._ready_at: float | None = None
        self._num_steps = 0
        self._progressed_at = time.monotonic()

    @property
    def view(self) -> ReplicaView:
        return ReplicaView(
            replica_id=self.replica_id,
            state=self.state,
            detail=self.detail,
            address=self.address,
            refusal=self.refusal,
            fetched_bytes=self.fetched_bytes,
        )

    @property
    def is_serving(self) -> bool:
        return self.state is ReplicaState.READY

    @property
    def is_outdated(self) -> bool:
        """It serves, and not with all settings and sizes that are wanted of it."""
        return self.is_serving and (self._configured is not self._entry or self._is_resizing or bool(self.refusal))

    @property
    def served_s(self) -> float | None:
        """Seconds since it was ready; None when it never was."""
        return None if self._ready_at is None else time.monotonic() - self._ready_at

    async def run(self) -> None:
        """The whole life. Never returns: it ends by failing, or by being cancelled for its removal."""
        try:
            worker = await self._bounded(self._host.launch(), "its actor could not be created")
            self._worker = worker
            await self._wait_for_place(worker)
            await self._wait_until_serving(worker)
            await self._watch(worker)
        except ReplicaFailedError as error:
            logger.warning("replica %s: %s", self.replica_id, error)
            self._move("fail", str(error))
            raise

    def reconfigure(self, entry: RegistryEntry) -> None:
        """Take over the settings of a changed file. Its worker gets them at once, or when it serves."""
        self._entry = entry
        self._entry_changed.set()

    async def retire(self, timeout_s: float) -> None:
        """Let it finish what it has, then close its channel; `run` must have been cancelled before."""
        if self.state is not ReplicaState.READY or self._worker is None:
            return
        self._move("drain", "finishing its requests")
        with contextlib.suppress(ReplicaFailedError, TimeoutError):
            async with asyncio.timeout(timeout_s + CALL_TIMEOUT_S):
                await self._worker.drain(timeout_s)
                await self._worker.stop()

    async def reserved(self) -> tuple[tuple[str, Resources], ...]:
        """What it holds of which node, by its id."""
        return await self._host.reserved()

    async def remove(self) -> None:
        """Nothing of it is left afterwards."""
        await self._host.remove()

    def fail(self, reason: str) -> None:
        """It ended by something it does not know itself."""
        if self.state is not ReplicaState.FAILED:
            self._move("fail", reason)

    def announce_retry(self, delay_s: float) -> None:
        """Add to a failed replica's reason when the next attempt is made."""
        self._tell(f"{self.detail}; next attempt in {delay_s:g} s")

    async def _wait_for_place(self, worker: WorkerClient) -> None:
        """Until the process answers: its place may take as long as the registry allows, its start the load timeout."""
        first_call = asyncio.ensure_future(worker.report(None, 0.0))
        waiting_since = time.monotonic()
        placed_at: float | None = None
        pause_s = FIRST_PLACEMENT_NEWS_S
        try:
            while not (await asyncio.wait({first_call}, timeout=pause_s))[0]:
                pause_s = PLACEMENT_NEWS_S
                reason = await self._bounded(self._host.why_pending(), "the cluster's head does not answer")
                placed_at = None if reason else placed_at or time.monotonic()
                self._note_pending(reason)
                if reason:
                    self._check_place_timeout(reason, time.monotonic() - waiting_since)
                if placed_at is not None and time.monotonic() - placed_at > self._load_timeout_s:
                    raise ReplicaFailedError(f"its process did not start within {self._load_timeout_s:g} s")
            report = first_call.result()
        finally:
            first_call.cancel()
            self.lacks_room = self.has_no_place = False
        self.pid = report.pid
        self._move("placed", "loading")
        if report.phase is not WorkerPhase.SERVING:
            self.settled.set()

    def _note_pending(self, reason: PendingReason | None) -> None:
        known = self.lacks_room, self.has_no_place
        self.lacks_room = reason is not None and not reason.is_lasting
        self.has_no_place = reason is not None and reason.is_lasting
        if reason is not None:
            self.settled.set()
        self._tell(reason.text if reason else "starting its process")
        if known != (self.lacks_room, self.has_no_place):
            self._on_change()

    def _check_place_timeout(self, reason: PendingReason, waited_s: float) -> None:
        """Without a limit the wait takes as long as it takes, for nodes may join any time."""
        limit_s = self._entry.scaling.pg_timeout_s
        if limit_s is not None and waited_s > limit_s:
            raise ReplicaFailedError(f"no place within {limit_s:g} s (scaling_config.pg_timeout_s): {reason.text}")

    async def _wait_until_serving(self, worker: WorkerClient) -> None:
        """Until the model is loaded, at most for the load timeout."""
        following = asyncio.create_task(self._follow_progress(worker))
        try:
            async with asyncio.timeout(self._load_timeout_s):
                self.address = await worker.start()
        except TimeoutError:
            message = f"loading took more than {self._load_timeout_s:g} s (AVIARY_LOAD_TIMEOUT_S); last: {self.detail}"
            raise ReplicaFailedError(message) from None
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await self._configure(worker)
        self._ready_at = self._progressed_at = self.last_used_at = time.monotonic()
        self._move("served", self.detail)

    async def _follow_progress(self, worker: WorkerClient) -> None:
        seen: int | None = None
        while True:
            # A library that holds the process up for a while costs news, not the replica: `start` tells its death.
            with contextlib.suppress(ReplicaFailedError):
                report = await self._bounded(worker.report(seen, PROGRESS_WAIT_S), "it does not answer")
                seen = report.version
                self.fetched_bytes = report.fetched_bytes
                if report.phase is WorkerPhase.LOADING:
                    self._tell(report.detail)
            await asyncio.sleep(PROGRESS_PAUSE_S)

    async def _watch(self, worker: WorkerClient) -> None:
        """Until it fails: its death is seen at once, a stuck process or engine by the next looks at it."""
        stopped = asyncio.ensure_future(self._until_stopped(worker))
        changed = asyncio.ensure_future(self._entry_changed.wait())
        reported = asyncio.ensure_future(self._next_report(worker, None))
        try:
            while True:
                done, _ = await asyncio.wait({stopped, changed, reported}, return_when=asyncio.FIRST_COMPLETED)
                if stopped in done:
                    await stopped
                if changed in done:
                    await self._configure(worker)
                    changed = asyncio.ensure_future(self._entry_changed.wait())
                    self._on_change()
                if reported in done:
                    report = await reported
                    self._note_model(report)
                    self._check_progress(report)
                    reported = asyncio.ensure_future(self._next_report(worker, report.version))
        finally:
            for waiting in (stopped, changed, reported):
                waiting.cancel()
            await asyncio.gather(stopped, changed, reported, return_exceptions=True)

    async def _next_report(self, worker: WorkerClient, seen: int | None) -> WorkerReport:
        return await self._bounded(worker.report(seen, HEALTH_PERIOD_S), "it does not answer")

    async def _configure(self, worker: WorkerClient) -> None:
        """Give the worker the settings of today, and again when they changed meanwhile; then hear what came of it."""
        while self._configured is not self._entry:
            self._entry_changed.clear()
            entry = self._entry
            await self._bounded(worker.reconfigure(entry), "it does not answer")
            self._configured = entry
        report = await self._next_report(worker, None)
        self.fetched_bytes = report.fetched_bytes
        self._note_model(report)

    async def _until_stopped(self, worker: WorkerClient) -> None:
        while not await worker.wait_until_stopped(WATCH_S):
            pass
        raise ReplicaFailedError("it was stopped")

    def _note_model(self, report: WorkerReport) -> None:
        """What it says of its model. A changed file may have given it other sizes, at once or after the requests that
        needed the earlier ones."""
        told = (report.max_model_len, report.answer_format, report.is_resizing, report.refusal)
        if told != (self.max_model_len, self.answer_format, self._is_resizing, self.refusal):
            self.max_model_len, self.answer_format, self._is_resizing, self.refusal = told
            self._on_change()
        self._tell(report.detail)

    def _check_progress(self, report: WorkerReport) -> None:
        """Health is progress: an engine with work must step, however long each step takes up to the limit."""
        status = report.status
        now = time.monotonic()
        self.num_ongoing = status.num_running + status.num_waiting
        if self.num_ongoing or status.num_steps != self._num_steps:
            self.last_used_at = now
        if status.num_steps != self._num_steps or not self.num_ongoing:
            self._num_steps, self._progressed_at = status.num_steps, now
        if now - self._progressed_at > STALL_S:
            raise ReplicaFailedError(f"its engine made no step for {STALL_S:g} s while requests were waiting")

    async def _bounded(self, call: Awaitable[T], complaint: str) -> T:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await call
        except TimeoutError:
            raise ReplicaFailedError(f"{complaint} for {CALL_TIMEOUT_S:g} s") from None

    def _move(self, transition: str, detail: str) -> None:
        self.state = TRANSITIONS[self.state, transition]
        self.detail = detail
        if self.state in (ReplicaState.READY, ReplicaState.FAILED):
            self.settled.set()
        if self.state is ReplicaState.FAILED:
            self.address = None
        self._on_change()

    def _tell(self, detail: str) -> None:
        if detail != self.detail:
            self.detail = detail
            self._on_change()
