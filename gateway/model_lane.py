"""One deployed model inside the dispatcher: its links, the queues before them, and who goes where.

Clients come first. Background work (lines of batches) has a queue of its own, which no client's request waits behind:
it gets a part of what clients leave, and is set aside where they want that too. Knows nothing of time, tasks or HTTP;
the dispatcher, its only user, does what it says. Which replica suits a request is `routing`'s to say.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
BACKGROUND_SHARE: Final = 0.75
"""Of a replica's sequences: the rest stays free, so that a client's next request begins at once."""


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
        self._background: OrderedDict[Ticket, None] = OrderedDict()
        self._finished_at: deque[float] = deque(maxlen=_NUM_REMEMBERED)

    @property
    def model_id(self) -> str:
        return self.view.model_id

    @property
    def num_queued(self) -> int:
        """Of clients."""
        return len(self._queue)

    @property
    def ready_replicas(self) -> Mapping[str, ReplicaView]:
        """Those that a link can go to, by their ids."""
        return {
            one.replica_id: one
            for one in self.view.replicas
            if one.state is ReplicaState.READY and one.address is not None
        }

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
        return bool(self._queue or self._background) and not self.is_reachable

    @property
    def queued(self) -> tuple[Ticket, ...]:
        """Clients' and background work."""
        return (*self._queue, *self._background)

    @property
    def queued_background(self) -> tuple[Ticket, ...]:
        return tuple(self._background)

    @property
    def load(self) -> Load:
        """What there is to do now, for the pool's autoscaling.

        All background work together is one request: it wakes a model that sleeps and keeps one replica, not more.
        """
        links = self.links.values()
        in_background = (ticket for link in links for ticket in link.background.values())
        one = next(in_background, None) or next(iter(self._background), None)
        queued = [*self._queue, *(ticket for ticket in self._background if ticket is one)]
        running = {
            link.replica_id: [t for t in link.in_flight.values() if not t.is_background or t is one] for link in links
        }
        return Load(
            queued=len(queued),
            running={replica_id: len(tickets) for replica_id, tickets in running.items()},
            queued_tokens=sum(ticket.num_expected_tokens for ticket in queued),
            running_tokens={name: sum(ticket.num_tokens for ticket in tickets) for name, tickets in running.items()},
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
        if submission.is_background:
            return  # whoever has such work waits for `takes_background` before it comes
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
        """For clients: what background work has is theirs too."""
        limit = self.view.entry.max_ongoing_requests
        return sum(link.room(limit) + len(link.background) for link in self.links.values())

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
        self._queue_of(ticket)[ticket] = None

    def enqueue_first(self, ticket: Ticket) -> None:
        """A ticket that was sent before keeps its turn."""
        queue = self._queue_of(ticket)
        queue[ticket] = None
        queue.move_to_end(ticket, last=False)

    def dequeue(self, ticket: Ticket) -> None:
        self._queue_of(ticket).pop(ticket, None)

    def _queue_of(self, ticket: Ticket) -> OrderedDict[Ticket, None]:
        return self._background if ticket.is_background else self._queue

    def note_finished(self, now: float) -> None:
        self._finished_at.append(now)

    def assign(self) -> Iterator[tuple[WorkerLink, list[Ticket]]]:
        """Takes from the queue, in order, what the links have room for; the router says which of them gets it."""
        limit = self.view.entry.max_ongoing_requests
        yield from self._assign(self._queue, lambda link: link.room(limit))

    def assign_background(self) -> Iterator[tuple[WorkerLink, list[Ticket]]]:
        """The same of background work, in what clients leave."""
        if not self._queue:
            yield from self._assign(self._background, self._background_room)

    def _assign(
        self, queue: OrderedDict[Ticket, None], room_of: Callable[[WorkerLink], int]
    ) -> Iterator[tuple[WorkerLink, list[Ticket]]]:
        links = {link.replica_id: link for link in self.links.values() if link.takes_work}
        self._router.retain(links)
        if not queue or not any(room_of(link) for link in links.values()):
            return
        candidates = [_candidate(link, room_of(link)) for link in links.values()]
        batches: dict[str, list[Ticket]] = {}
        prompt, fingerprint = None, Fingerprint()
        while queue and any(one.room for one in candidates):
            ticket, _ = queue.popitem(last=False)
            if ticket.base.prompt is not prompt:
                prompt = ticket.base.prompt
                fingerprint = self._fingerprint(ticket)
            route = ticket.route = self._router.route(_demand(ticket, fingerprint), candidates)
            batches.setdefault(route.replica_id, []).append(ticket)
            self._on_routed(route.reason)
        yield from ((links[replica_id], tickets) for replica_id, tickets in batches.items())

    # Background work

    @property
    def takes_background(self) -> bool:
        """Whether more of it would be of use: it could begin, or wake a model that sleeps."""
        if self.is_out or self._queue:
            return False
        room = sum(map(self._background_room, self.links.values()))
        return len(self._background) < max(1, room)

    @property
    def in_the_way(self) -> list[Ticket]:
        """Background work that runs where clients want to, what has come least far first."""
        links = [link for link in self.links.values() if link.background]
        if not links:
            return []
        victims = [one for link in links for one in _least(link.background.values(), link.num_over(self._slots))]
        limit = self.view.entry.max_ongoing_requests
        num_wanting = self.num_queued - len(victims) - sum(link.room(limit) for link in self.links.values())
        if num_wanting > 0:
            others = (one for link in links for one in link.background.values() if one not in victims)
            victims += _least(others, num_wanting)
        return victims

    def _background_room(self, link: WorkerLink) -> int:
        slots = max(1, int(self._slots * BACKGROUND_SHARE))
        return max(0, link.room(slots) - link.num_foreign)

    @property
    def _slots(self) -> int:
        """Sequences that a replica runs at once, and may be sent."""
        entry = self.view.entry
        return min(entry.max_ongoing_requests, entry.model.generation.max_batch_size)

    def _fingerprint(self, ticket: Ticket) -> Fingerprint:
        """What leaves no KV behind is not remembered."""
        if not ticket.generates:
            return Fingerprint()
        return self._router.fingerprint(ticket.base.prompt, ticket.submission.session)


def _least(tickets: Iterable[Ticket], count: int) -> list[Ticket]:
    """So many of them, if there are: those of which least would be lost."""
    return sorted(tickets, key=lambda ticket: ticket.num_generated_tokens)[:count] if count else []


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
