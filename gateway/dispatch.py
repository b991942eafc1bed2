"""Where requests meet workers: bounded queues, choice of a worker, batches, retries, deadlines, aborts.

Gets views of the pool and submissions of clients, keeps a link to every ready replica, and fills output streams. Knows
neither HTTP nor Ray. Everything happens on one event loop, so state changes between two awaits are atomic.

A ticket ends exactly once: with its final output, a fault, a deadline, or because nobody reads it any more. Until its
first output it is sent again when its worker was full, draining or lost; after that, never. A request under which two
workers died is refused: it may be what kills them. Background work is given back whenever clients want its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from gateway.channel import Connect
from gateway.errors import (
    ApiError,
    DeadlineError,
    DrainingError,
    ModelNotFoundError,
    ServerError,
    SetAsideError,
    WorkerLostError,
)
from gateway.load import Load
from gateway.metrics import Metrics
from gateway.model_lane import ModelLane
from gateway.outages import Outages
from gateway.output_stream import OutputStream
from gateway.routing import Router, RoutingPolicy
from gateway.ticket import Submission, Ticket, TicketState, tickets_of
from gateway.worker_link import WorkerLink
from model_registry.contract import (
    Fault,
    FaultKind,
    Frame,
    ModelView,
    PoolView,
    ReplicaView,
    SequenceOutput,
)

logger = logging.getLogger(__name__)

MAX_WORKER_LOSSES: Final = 2

_RETRIED = (FaultKind.WORKER_FULL, FaultKind.WORKER_DRAINING)


@dataclass(slots=True, eq=False)
class _Job:
    """All tickets of one submission, and what must be undone at its end."""

    stream: OutputStream
    lane: ModelLane
    deadline: asyncio.TimerHandle | None = None
    tickets: list[Ticket] = field(default_factory=list)


class Dispatcher:
    """The one owner of all tickets and links of a gateway."""

    def __init__(
        self,
        connect: Connect,
        metrics: Metrics,
        *,
        request_timeout_s: float,
        routing: RoutingPolicy = RoutingPolicy.AFFINITY,
    ) -> None:
        self._connect = connect
        self._metrics = metrics
        self._request_timeout_s = request_timeout_s
        self._routing = routing
        self._lanes: dict[str, ModelLane] = {}
        self._outages = Outages(self._refuse_queued)
        self._jobs: dict[OutputStream, _Job] = {}
        self._sent_to: dict[Ticket, WorkerLink] = {}
        self._retiring: set[WorkerLink] = set()
        """Links that only finish what they have."""
        self._drained: set[str] = set()
        """Replicas that said they are draining, which the pool's view does not show yet."""
        self._closing: set[asyncio.Task[None]] = set()
        self._flush_is_due = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.is_draining = False
        self._turned = asyncio.Event()
        """Set for a moment when there is room for background work, or never will be."""
        self.starved = asyncio.Event()
        """Set when a request has to wait for a replica to come; cleared by whoever tells the pool."""

    # What clients may ask about

    @property
    def models(self) -> tuple[ModelView, ...]:
        return tuple(lane.view for lane in self._lanes.values())

    def model(self, model_id: str) -> ModelView:
        """Raises `ModelNotFoundError`."""
        return self._lane(model_id).view

    @property
    def can_serve(self) -> bool:
        """Some model has a worker that takes requests, or lets them wait for one."""
        return not self.is_draining and any(lane.may_serve for lane in self._lanes.values())

    @property
    def loads(self) -> list[tuple[ModelView, Load]]:
        """What there is to do for each model now."""
        return [(lane.view, lane.load) for lane in self._lanes.values()]

    # Requests

    def submit(self, submission: Submission) -> OutputStream:
        """Queues all its sequences, or none. Raises `ApiError`; whoever gets the stream must close it."""
        if self.is_draining:
            raise DrainingError
        lane = self._lane(submission.model_id)
        now = time.monotonic()
        lane.admit(submission, now)
        stream = OutputStream(submission.num_sequences, on_close=lambda: self._end_job(job))
        job = _Job(stream, lane)
        loop = asyncio.get_running_loop()
        job.tickets = tickets_of(submission, stream, now)
        job.deadline = loop.call_later(submission.received_at + self._request_timeout_s - now, self._expire, job)
        self._jobs[stream] = job
        self._is_idle.clear()
        for ticket in job.tickets:
            lane.enqueue(ticket)
        if lane.is_starved:
            self.starved.set()
        self._flush_soon()
        return stream

    async def background_turn(self, model_id: str) -> None:
        """Waits until work that nobody waits for may come. Raises `ModelNotFoundError` or `DrainingError`."""
        while True:
            if self.is_draining:
                raise DrainingError
            if self._lane(model_id).takes_background:
                return
            await self._turned.wait()

    def _lane(self, model_id: str) -> ModelLane:
        lane = self._lanes.get(model_id)
        if lane is None:
            raise ModelNotFoundError(model_id)
        return lane

    # Sending: once per tick of the event loop, so that what arrives together leaves together

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        now = time.monotonic()
        for lane in self._lanes.values():
            self._make_way(lane)
            self._send(lane.assign(), now)
            self._make_way(lane)
            self._send(lane.assign_background(), now)
        self._metrics.load_changed()
        if any(lane.takes_background for lane in self._lanes.values()):
            self._tell_background()

    def _tell_background(self) -> None:
        """Whoever waits for its turn looks again."""
        self._turned.set()
        self._turned.clear()

    def _send(self, assigned: Iterable[tuple[WorkerLink, list[Ticket]]], now: float) -> None:
        for link, tickets in assigned:
            for ticket in tickets:
                ticket.mark_sent(now)
                self._sent_to[ticket] = link
            link.send(tickets)

    def _make_way(self, lane: ModelLane) -> None:
        for ticket in lane.in_the_way:
            self._fail_ticket(ticket, SetAsideError())

    # What links tell

    def link_up(self, link: WorkerLink) -> None:
        lane = self._lanes.get(link.model_id)
        if lane is not None:
            self._outages.watch(lane)
            self._flush_soon()

    def link_frame(self, link: WorkerLink, frame: Frame) -> None:
        if not link.is_retired:
            self._metrics.worker(link.model_id, link.replica_id, frame.status)
        for output in frame.outputs:
            ticket = link.in_flight.get(output.request_id)
            if ticket is None:
                self._metrics.tokens_wasted(link.model_id, len(output.token_ids))
            elif output.fault is not None:
                self._take_fault(ticket, link, output.fault)
            else:
                self._take_output(ticket, output)
        self._flush_soon()

    def link_down(self, link: WorkerLink, lost: Sequence[Ticket]) -> None:
        for ticket in reversed(lost):
            ticket.note_loss(link.replica_id)
            logger.warning(
                "request %s lost replica %s of %s under it", ticket.submission.trace_id, link.replica_id, link.model_id
            )
            if ticket.has_output or ticket.num_losses >= MAX_WORKER_LOSSES:
                self._fail_ticket(ticket, WorkerLostError())
            elif ticket.state is TicketState.SENT:
                self._requeue(ticket)
        self._close_when_done(link)
        lane = self._lanes.get(link.model_id)
        if lane is not None:
            self._outages.watch(lane)
            self._flush_soon()

    # Outputs

    def _take_output(self, ticket: Ticket, output: SequenceOutput) -> None:
        self._measure(ticket, output)
        job = self._jobs[ticket.stream]
        ticket.stream.push(ticket.index, output)
        if output.is_final:
            job.lane.note_finished(time.monotonic())
            self._end_ticket(ticket, job.lane)
            if ticket.stream.is_ended:
                self._end_job(job)

    def _measure(self, ticket: Ticket, output: SequenceOutput) -> None:
        now = time.monotonic()
        model_id = ticket.submission.model_id
        if ticket.generates:
            self._measure_tokens(ticket, len(output.token_ids), now)
        ticket.last_output_at = now
        if output.usage is not None and ticket.is_first_of_prompt:
            self._metrics.prompt(model_id, output.usage)
        if output.timing is not None:
            self._metrics.timing(model_id, ticket.sent_at - ticket.admitted_at, output.timing)

    def _measure_tokens(self, ticket: Ticket, num_tokens: int, now: float) -> None:
        model_id = ticket.submission.model_id
        if ticket.last_output_at is None:
            self._metrics.first_output(model_id, now - ticket.submission.received_at)
        else:
            self._metrics.later_output(model_id, now - ticket.last_output_at, num_tokens)
        ticket.num_generated_tokens += num_tokens
        self._metrics.tokens(model_id, num_tokens)

    def _take_fault(self, ticket: Ticket, link: WorkerLink, fault: Fault) -> None:
        if fault.kind in _RETRIED and not ticket.has_output:
            self._refused_by(link, fault.kind)
            self._requeue(ticket)
            self._close_when_done(link)
            return
        if fault.kind is FaultKind.ENGINE_FAULT:
            logger.error(
                "request %s failed in replica %s of %s: %s",
                ticket.submission.trace_id,
                link.replica_id,
                link.model_id,
                fault.message,
            )
        self._fail_ticket(ticket, ticket.submission.error_of(fault))

    def _refused_by(self, link: WorkerLink, kind: FaultKind) -> None:
        if kind is FaultKind.WORKER_FULL:
            link.is_full = True
            return
        lane = self._lanes.get(link.model_id)
        if lane is not None:
            self._drained.add(link.replica_id)
            self._retire(lane, link)
            self._outages.watch(lane)

    def _requeue(self, ticket: Ticket) -> None:
        link = self._sent_to.pop(ticket)
        link.release(ticket)
        job = self._jobs[ticket.stream]
        if job.lane.is_out or job.lane is not self._lanes.get(job.lane.model_id):
            self._fail_job(job, job.lane.unavailable())
            return
        ticket.mark_queued()
        job.lane.enqueue_first(ticket)

    # Ends

    def _expire(self, job: _Job) -> None:
        was_sent = any(ticket.num_attempts for ticket in job.tickets)
        is_patient = job.tickets[0].is_background and not was_sent
        self._fail_job(job, SetAsideError() if is_patient else DeadlineError(self._request_timeout_s))

    def _fail_ticket(self, ticket: Ticket, error: ApiError) -> None:
        """One choice that cannot go on ends the whole reply: a client could not use the rest."""
        job = self._jobs.get(ticket.stream)
        if job is not None:
            self._fail_job(job, error)

    def _fail_job(self, job: _Job, error: ApiError) -> None:
        job.stream.fail(error)
        self._end_job(job)

    def _end_job(self, job: _Job) -> None:
        """Ends what is left of it, wherever it is. May be called again."""
        if self._jobs.pop(job.stream, None) is None:
            return
        if job.deadline is not None:
            job.deadline.cancel()
        aborted: dict[WorkerLink, list[str]] = {}
        for ticket in job.tickets:
            link = self._sent_to.get(ticket)
            if link is not None:
                aborted.setdefault(link, []).append(ticket.request.request_id)
            self._end_ticket(ticket, job.lane)
        for link, request_ids in aborted.items():
            link.abort(request_ids)
        self._flush_soon()
        if not self._jobs:
            self._is_idle.set()

    def _end_ticket(self, ticket: Ticket, lane: ModelLane) -> None:
        if ticket.state is TicketState.QUEUED:
            lane.dequeue(ticket)
        ticket.mark_ended()
        link = self._sent_to.pop(ticket, None)
        if link is not None:
            link.release(ticket)
            self._close_when_done(link)

    # The pool

    def update(self, view: PoolView) -> None:
        """Brings models and links in line with the pool."""
        models = {model.model_id: model for model in view.models}
        for model_id in set(self._lanes) - set(models):
            self._remove_model(self._lanes[model_id])
        for model_id, model in models.items():
            self._update_model(self._lanes.get(model_id) or self._add_model(model), model, view.secret)
        self._drained &= {replica_id for lane in self._lanes.values() for replica_id in lane.ready_replicas}
        self._flush_soon()

    def _add_model(self, model: ModelView) -> ModelLane:
        on_routed = partial(self._metrics.routed, model.model_id)
        lane = self._lanes[model.model_id] = ModelLane(model, Router(self._routing), on_routed)
        self._metrics.watch_model(lane.model_id, lambda: self._num_running(lane.model_id), lambda: lane.num_queued)
        return lane

    def _num_running(self, model_id: str) -> int:
        return sum(ticket.submission.model_id == model_id for ticket in self._sent_to)

    def _update_model(self, lane: ModelLane, model: ModelView, secret: str) -> None:
        lane.view = model
        self._metrics.replicas(model)
        ready = lane.ready_replicas
        for link in list(lane.links.values()):
            replica = ready.get(link.replica_id)
            if replica is None or replica.address != link.address or link.secret != secret:
                self._retire(lane, link)
        for replica in ready.values():
            if replica.replica_id not in self._drained | set(lane.links):
                self._link(lane, replica, secret)
        self._outages.watch(lane)

    def _link(self, lane: ModelLane, replica: ReplicaView, secret: str) -> None:
        address = replica.address or ""
        link = WorkerLink(lane.model_id, replica.replica_id, address, secret, self._connect, self)
        lane.links[replica.replica_id] = link
        link.start()

    def _refuse_queued(self, lane: ModelLane) -> None:
        for ticket in lane.queued:
            self._fail_ticket(ticket, lane.unavailable())

    def _remove_model(self, lane: ModelLane) -> None:
        del self._lanes[lane.model_id]
        self._outages.forget(lane)
        for ticket in lane.queued:
            self._fail_ticket(ticket, ModelNotFoundError(lane.model_id))
        for link in list(lane.links.values()):
            self._retire(lane, link)
        self._metrics.forget_model(lane.model_id)
        self._tell_background()

    def _retire(self, lane: ModelLane, link: WorkerLink) -> None:
        if lane.links.pop(link.replica_id, None) is None:
            return
        link.retire()
        self._retiring.add(link)
        self._metrics.forget_worker(link.model_id, link.replica_id)
        self._close_when_done(link)

    def _close_when_done(self, link: WorkerLink) -> None:
        if link.in_flight or link not in self._retiring:
            return
        self._retiring.discard(link)
        task = asyncio.get_running_loop().create_task(link.close(), name=f"close {link.replica_id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # Shutting down

    def drain(self) -> None:
        """Nothing new is taken; what is open goes on, but for work that nobody waits for and no worker has yet."""
        self.is_draining = True
        for lane in self._lanes.values():
            for ticket in lane.queued_background:
                self._fail_ticket(ticket, DrainingError())
        self._tell_background()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Whether all requests ended in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            return False
        return True

    def fail_all(self, error: ApiError) -> int:
        """Ends every open request with the same error; how many there were."""
        jobs = list(self._jobs.values())
        for job in jobs:
            self._fail_job(job, error)
        return len(jobs)

    async def close(self) -> None:
        """Lets go of all workers."""
        self.fail_all(ServerError("The server was stopped while processing your request."))
        for lane in list(self._lanes.values()):
            self._outages.forget(lane)
        links = [link for lane in self._lanes.values() for link in lane.links.values()]
        await asyncio.gather(*(link.close() for link in (*links, *self._retiring)), *self._closing)
