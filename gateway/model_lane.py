"""One deployed model inside the dispatcher: its links, the queue before them, and who goes where.

Knows nothing of time, tasks or HTTP; the dispatcher, its only user, does what it says. Which replica suits a request is
`routing`'s to say.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final

from gateway.errors import InvalidRequestError, ModelUnavailableError, QueueFullError
from gateway.load import Load
from gateway.routing import Candidate, Demand, Fingerprint, Router, RoutingReason
from gateway.ticket import Submission, Ticket
from gateway.token_estimates import EXPECTED_TOKENS, tokens_left
from gateway.worker_link import WorkerLink
from model_registry.contract import ModelView, ReplicaState, ReplicaView

UNKNOWN_WAIT_S: Final = 5.0
"""Told to clients when nothing has finished yet from which a wait could be computed."""
STARTING_WAIT_S: Final = 10.0
FAILED_WAIT_S: Final = 30.0
RATE_WINDOW_S: Final = 30.0
"""Older completions say nothing about how fast a queue moves now."""
_NUM_REMEMBERED: Final = 64


class ModelLane:
    """Queue and links of one model."""

    def __init__(self, view: ModelView, router: Router, on_routed: Callable[[RoutingReason], None]) -> None:
        """`on_routed` is told of every decision of the router."""
        self.view = view
        self.links: dict[str, WorkerLink] = {}
        """By replica id: the replicas that are wanted, connected or not."""
        self.is_out = False
        """No replica could be reached for so long that requests are refused."""
        self._router = router
        self._on_routed = on_routed
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._finished_at: deque[float] = deque(maxlen=_NUM_REMEMBERED)

    @property
    def model_id(self) -> str:
        return self.view.model_id

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def is_reachable(self) -> bool:
        return any(link.takes_work for link in self.links.values())

    @property
    def may_serve(self) -> bool:
        """A request is served now, or as soon as the replica comes that it may wait for."""
        return self.is_reachable or self.view.may_wait

    @property
    def is_starved(self) -> bool:
        """Requests wait, and no replica takes any."""
        return bool(self._queue) and not self.is_reachable

    @property
    def queued(self) -> tuple[Ticket, ...]:
        return tuple(self._queue)

    @property
    def load(self) -> Load:
        """What there is to do now, for the pool's autoscaling."""
        links = self.links.values()
        return Load(
            queued=self.num_queued,
            running={link.replica_id: len(link.in_flight) for link in links},
            queued_tokens=sum(ticket.num_expected_tokens for ticket in self._queue),
            running_tokens={
                link.replica_id: sum(ticket.num_tokens for ticket in link.in_flight.values()) for link in links
            },
            kv_cache_usage={link.replica_id: link.kv_cache_usage for link in links if link.is_connected},
        )

    # Admission

    def admit(self, submission: Submission, now: float) -> None:
        """All of it or nothing. Raises `InvalidRequestError`, `ModelUnavailableError` or `QueueFullError`."""
        num_tickets = submission.num_sequences
        if num_tickets > self._most_ever:
            raise self._too_many(submission)
        if self.is_out:
            raise self.unavailable()
        limit = self.view.entry.deployment.max_queued_requests
        if self.num_queued + num_tickets > self._room + limit:
            raise QueueFullError(
                f"The model `{self.model_id}` is overloaded: all its replicas are busy and {self.num_queued} requests "
                f"of at most {limit} are queued. Please retry your request later.",
                retry_after_s=self._wait_s(now),
            )

    def unavailable(self) -> ModelUnavailableError:
        """Why the model cannot serve, in the words of its replicas."""
        states = {replica.state for replica in self.view.replicas}
        wait_s = FAILED_WAIT_S if states <= {ReplicaState.FAILED} else STARTING_WAIT_S
        return ModelUnavailableError(
            f"The model `{self.model_id}` is not available now: {unavailable_reason(self.view)}. "
            "Please retry your request later.",
            retry_after_s=wait_s,
        )

    def _too_many(self, submission: Submission) -> InvalidRequestError:
        at_once = f"the model `{self.model_id}` can run and queue at once"
        if len(submission.prompts) == 1:
            return InvalidRequestError(
                f"Invalid 'n': integer above maximum value. Expected a value <= {self._most_ever}, which is what "
                f"{at_once}, but got {submission.num_sequences} instead.",
                param="n",
                code="integer_above_max_value",
            )
        param = submission.prompt_param
        return InvalidRequestError(
            f"Invalid '{param}': array too long. {len(submission.prompts)} prompts make {submission.num_sequences} "
            f"sequences, more than the {self._most_ever} that {at_once}. Send fewer at a time.",
            param=param,
            code="array_above_max_length",
        )

    @property
    def _room(self) -> int:
        limit = self.view.entry.max_ongoing_requests
        return sum(link.room(limit) for link in self.links.values())

    @property
    def _most_ever(self) -> int:
        """Tickets that the model takes when it has all its replicas and nothing else to do."""
        entry = self.view.entry
        num_replicas = max(entry.deployment.autoscaling_config.max_replicas, len(self.view.replicas))
        return entry.deployment.max_queued_requests + entry.max_ongoing_requests * num_replicas

    def _wait_s(self, now: float) -> float:
        """How long the present queue takes at the rate of the latest completions."""
        while self._finished_at and self._finished_at[0] < now - RATE_WINDOW_S:
            self._finished_at.popleft()
        if not self._finished_at:
            return UNKNOWN_WAIT_S
        per_sequence_s = (now - self._finished_at[0]) / len(self._finished_at)
        return (self.num_queued + 1) * per_sequence_s

    # Queue

    def enqueue(self, ticket: Ticket) -> None:
        self._queue[ticket] = None

    def enqueue_first(self, ticket: Ticket) -> None:
        """A ticket that was sent before keeps its turn."""
        self._queue[ticket] = None
        self._queue.move_to_end(ticket, last=False)

    def dequeue(self, ticket: Ticket) -> None:
        self._queue.pop(ticket, None)

    def note_finished(self, now: float) -> None:
        self._finished_at.append(now)

    def assign(self) -> Iterator[tuple[WorkerLink, list[Ticket]]]:
        """Takes from the queue, in order, what the links have room for; the router says which of them gets it."""
        links = {link.replica_id: link for link in self.links.values() if link.takes_work}
        self._router.retain(links)
        limit = self.view.entry.max_ongoing_requests
        if not self._queue or not any(link.room(limit) for link in links.values()):
            return
        candidates = [_candidate(link, link.room(limit)) for link in links.values()]
        batches: dict[str, list[Ticket]] = {}
        prompt, fingerprint = None, Fingerprint()
        while self._queue and any(one.room for one in candidates):
            ticket, _ = self._queue.popitem(last=False)
            if ticket.base.prompt is not prompt:
                prompt = ticket.base.prompt
                fingerprint = self._fingerprint(ticket)
            route = ticket.route = self._router.route(_demand(ticket, fingerprint), candidates)
            batches.setdefault(route.replica_id, []).append(ticket)
            self._on_routed(route.reason)
        yield from ((links[replica_id], tickets) for replica_id, tickets in batches.items())

    def _fingerprint(self, ticket: Ticket) -> Fingerprint:
        """What leaves no KV behind is not remembered."""
        if not ticket.generates:
            return Fingerprint()
        return self._router.fingerprint(ticket.base.prompt, ticket.submission.session)


def _candidate(link: WorkerLink, room: int) -> Candidate:
    return Candidate(
        replica_id=link.replica_id,
        room=room,
        num_own_tokens=link.num_tokens_left,
        num_foreign_tokens=link.num_foreign * EXPECTED_TOKENS,
        kv_cache_usage=link.kv_cache_usage,
    )


def _demand(ticket: Ticket, fingerprint: Fingerprint) -> Demand:
    return Demand(
        fingerprint=fingerprint,
        num_prompt_tokens=ticket.num_prompt_tokens,
        num_tokens_to_generate=tokens_left(ticket.base.sampling.max_tokens, 0),
        avoid=ticket.lost_replicas,
    )


def unavailable_reason(view: ModelView) -> str:
    """One line for people: what its replicas wait for, or why they failed."""
    if not view.replicas:
        return "it sleeps until a request comes" if view.may_wait else "it has no replicas"
    if any(replica.state is ReplicaState.READY for replica in view.replicas):
        return "its replicas cannot be reached"
    return "; ".join(dict.fromkeys(_told(replica) for replica in view.replicas))


def _told(replica: ReplicaView) -> str:
    """A replica's state and what it is about; what a pending one waits for begins with its state by itself."""
    state = replica.state.value
    if not replica.detail or replica.detail.startswith(f"{state}:"):
        return replica.detail or state
    return f"{state}: {replica.detail}"
