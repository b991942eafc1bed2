"""One model in simulated time: requests arrive, wait, run; replicas come and go as the autoscaler decides.

A discrete-event loop over a heap. Admission is the gateway's rule (`max_ongoing_requests` for each replica,
`max_queued_requests` before them, the least loaded gets the next), with one gateway. The load is sampled and reported
by the gateway's own `LoadHistory` and decided about by the pool's own `Autoscaler`, once per `tick_s`; the first
request for a model without replicas is reported at once. A replica that is not wanted any more finishes what it has.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from math import inf
from typing import Final

from aviary.simulation.least_loaded import LeastLoaded
from aviary.simulation.outcome import Moment, Outcome
from aviary.simulation.replica import Ending, Limits, SimulatedReplica, Speed
from aviary.simulation.trace import Trace
from gateway.load import Load, LoadHistory, sampling_interval_s
from gateway.token_estimates import EXPECTED_TOKENS
from model_registry.schema import RegistryEntry
from workers.pool.autoscaling import Autoscaler

GATEWAY: Final = "simulated"
_NUM_MOMENTS: Final = 1000
"""Points of a plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is the same for every model."""

    speed: Speed
    tick_s: float = 1.0
    """Seconds between two decisions."""
    request_timeout_s: float = 600.0
    """Longest life of a request, waiting included."""


class Simulation:
    """One model and its trace; `advance` until it is done, then `outcome`."""

    def __init__(self, entry: RegistryEntry, trace: Trace, conditions: Conditions) -> None:
        self._entry = entry
        self._trace = _as_served(trace, entry)
        self._conditions = conditions
        self._limits = Limits.of(entry)
        self._autoscaling = entry.deployment.autoscaling_config
        self._autoscaler = Autoscaler(self._autoscaling)
        self._history = LoadHistory(GATEWAY, entry.model_id)
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        """Heap of (when, tie-breaker, what); never empty."""
        self._num_planned = 0
        self._num_arrived = 0
        self._queue: deque[int] = deque()
        self._free = LeastLoaded(entry.max_ongoing_requests)
        self._starting: dict[SimulatedReplica, None] = {}
        self._ready: dict[SimulatedReplica, None] = {}
        self._paid_since: dict[SimulatedReplica, float] = {}
        self._num_replicas_made = 0
        self._replica_s = 0.0
        self._peak_replicas = 0
        self._target = entry.num_replicas
        self._decisions = [(0.0, self._target)]
        self._moments: list[Moment] = []
        self._endings: Counter[Ending] = Counter()
        self._first_token_at: dict[int, float] = {}
        self._first_token_s = array("d")
        self._latency_s = array("d")
        self._num_ended = 0
        self._ended_at = 0.0
        self._longest_prompt = _longest_prompt(entry)
        self._begin()

    # Time

    def advance(self, num_events: int) -> bool:
        """Go on for so many events at most; whether all requests and the time of the trace have ended."""
        arrivals, num_requests = self._trace.arrivals, len(self._trace)
        for _ in range(num_events):
            next_arrival = arrivals[self._num_arrived] if self._num_arrived < num_requests else inf
            if next_arrival <= self._agenda[0][0]:
                self._num_arrived += 1
                self._arrive(self._num_arrived - 1, next_arrival)
            elif self._num_ended == num_requests and self._agenda[0][0] > self._trace.duration_s:
                return True
            else:
                now, _, event = heappop(self._agenda)
                event(now)
        return False

    @property
    def outcome(self) -> Outcome:
        """Of a simulation that is done."""
        end = max(self._trace.duration_s, self._ended_at)
        return Outcome(
            model_id=self._entry.model_id,
            endings=dict(self._endings),
            first_token_s=sorted(self._first_token_s),
            latency_s=sorted(self._latency_s),
            duration_s=end,
            replica_s=self._replica_s + sum(end - since for since in self._paid_since.values()),
            peak_replicas=self._peak_replicas,
            decisions=self._decisions,
            moments=self._moments,
        )

    def _begin(self) -> None:
        """Replicas that are there already, and everything that happens again and again."""
        for _ in range(self._target):
            self._serve_with(self._new_replica(0.0), 0.0)
        self._every(max(self._trace.duration_s / _NUM_MOMENTS, self._conditions.tick_s), self._look)
        if self._autoscaling.min_replicas != self._autoscaling.max_replicas:
            # In this order: what is reported at a moment is decided about at it.
            self._every(sampling_interval_s(self._autoscaling), self._sample)
            self._every(self._autoscaling.metrics_interval_s, self._report)
            self._every(self._conditions.tick_s, self._decide)

    def _plan(self, at: float, event: Callable[[float], None]) -> None:
        self._num_planned += 1
        heappush(self._agenda, (at, self._num_planned, event))

    def _every(self, interval_s: float, act: Callable[[float], None]) -> None:
        count = 0

        def happen(now: float) -> None:
            nonlocal count
            act(now)
            count += 1
            self._plan(count * interval_s, happen)

        self._plan(0.0, happen)

    # Requests

    def _arrive(self, request: int, now: float) -> None:
        if self._trace.prompt_tokens[request] > self._longest_prompt:
            self._end(request, Ending.TOO_LONG, now)
        elif self._free.room:
            self._send(request, now)
        elif len(self._queue) >= self._entry.deployment.max_queued_requests:
            self._end(request, Ending.FULL, now)
        else:
            self._wait(request, now)

    def _wait(self, request: int, now: float) -> None:
        self._queue.append(request)
        if len(self._queue) == 1:
            self._plan(self._deadline(request), self._expire)
        if self._target == 0:
            self._report(now)

    def _expire(self, now: float) -> None:
        """End what has waited too long; there is one such plan as long as anything waits."""
        while self._queue and self._deadline(self._queue[0]) <= now:
            self._end(self._queue.popleft(), Ending.EXPIRED, now)
        if self._queue:
            self._plan(self._deadline(self._queue[0]), self._expire)

    def _deadline(self, request: int) -> float:
        return self._trace.arrivals[request] + self._conditions.request_timeout_s

    def _send(self, request: int, now: float) -> None:
        replica = self._free.take()
        replica.submit(request, now)
        self._follow(replica)

    def _send_queued(self, now: float) -> None:
        while self._queue and self._free.room:
            self._send(self._queue.popleft(), now)

    def _end(self, request: int, ending: Ending, now: float) -> None:
        self._endings[ending] += 1
        self._num_ended += 1
        self._ended_at = now
        first_token_at = self._first_token_at.pop(request, now)
        if ending is Ending.DONE:
            arrival = self._trace.arrivals[request]
            self._latency_s.append(now - arrival)
            self._first_token_s.append(min(first_token_at, now) - arrival)

    # Replicas

    def _follow(self, replica: SimulatedReplica) -> None:
        """Plan what happens on the replica next, in place of what was planned before."""
        replica.version += 1
        next_at = replica.next_change()
        if next_at < inf:
            self._plan(next_at, partial(self._advance_replica, replica, replica.version))

    def _advance_replica(self, replica: SimulatedReplica, version: int, now: float) -> None:
        if version != replica.version:
            return
        ended = replica.advance(now, self._first_token_at)
        for request, ending in ended:
            self._end(request, ending, now)
        self._follow(replica)
        if ended and replica in self._ready:
            self._free.note_ended(replica, len(ended))
            self._send_queued(now)
        elif not replica.in_flight and replica not in self._ready:
            self._stop_paying(replica, now)

    def _new_replica(self, now: float) -> SimulatedReplica:
        self._num_replicas_made += 1
        replica = SimulatedReplica(
            f"replica-{self._num_replicas_made}",
            self._trace,
            self._conditions.speed,
            self._limits,
            self._conditions.request_timeout_s,
        )
        self._paid_since[replica] = now
        self._peak_replicas = max(self._peak_replicas, len(self._paid_since))
        return replica

    def _stop_paying(self, replica: SimulatedReplica, now: float) -> None:
        self._replica_s += now - self._paid_since.pop(replica)

    def _serve_with(self, replica: SimulatedReplica, now: float) -> None:
        self._ready[replica] = None
        self._free.add(replica)
        self._send_queued(now)

    # Load and scale

    def _sample(self, now: float) -> None:
        self._history.record(now, self._load(), self._autoscaling.look_back_period_s)

    def _report(self, now: float) -> None:
        self._autoscaler.record(self._history.report(now, self._load(), self._autoscaling.look_back_period_s))

    def _load(self) -> Load:
        """As a gateway sees it; what nobody measures is left out."""
        load = Load(queued=len(self._queue), running={replica.name: len(replica.in_flight) for replica in self._ready})
        if self._autoscaling.target_ongoing_tokens is not None:
            load = replace(
                load,
                queued_tokens=sum(self._expected_tokens(request) for request in self._queue),
                running_tokens={replica.name: replica.num_tokens for replica in self._ready},
            )
        if self._autoscaling.target_kv_cache_usage is not None:
            load = replace(load, kv_cache_usage={replica.name: replica.kv_cache_usage for replica in self._ready})
        return load

    def _expected_tokens(self, request: int) -> int:
        """Clients are thought not to say how long an answer may be."""
        limit = self._entry.model.generation.generate_kwargs.max_new_tokens
        return self._trace.prompt_tokens[request] + (EXPECTED_TOKENS if limit is None else limit)

    def _decide(self, now: float) -> None:
        names = [replica.name for replica in self._ready]
        target = self._autoscaler.decide(now, num_running=len(names), target=self._target, replica_ids=names)
        if target != self._target:
            self._target = target
            self._decisions.append((now, target))
            self._scale(now)

    def _scale(self, now: float) -> None:
        surplus = len(self._starting) + len(self._ready) - self._target
        for _ in range(-surplus):
            replica = self._new_replica(now)
            self._starting[replica] = None
            self._plan(now + self._conditions.speed.cold_start_s, partial(self._finish_start, replica))
        for _ in range(surplus):
            self._remove_one(now)

    def _finish_start(self, replica: SimulatedReplica, now: float) -> None:
        if replica in self._starting:
            del self._starting[replica]
            self._serve_with(replica, now)

    def _remove_one(self, now: float) -> None:
        """The newest that does not serve yet, or the one that has least to finish."""
        if self._starting:
            self._stop_paying(self._starting.popitem()[0], now)
            return
        replica = self._free.idlest()
        self._free.remove(replica)
        del self._ready[replica]
        if not replica.in_flight:
            self._stop_paying(replica, now)

    def _look(self, now: float) -> None:
        self._moments.append(Moment(now, self._num_arrived, len(self._queue), len(self._ready), len(self._paid_since)))


def _as_served(trace: Trace, entry: RegistryEntry) -> Trace:
    """Answers end where the context does."""
    limit = entry.model.generation.max_model_len
    if limit is None:
        return trace
    outputs = (
        max(1, min(output, limit - prompt))
        for prompt, output in zip(trace.prompt_tokens, trace.output_tokens, strict=True)
    )
    return replace(trace, output_tokens=array("q", outputs))


def _longest_prompt(entry: RegistryEntry) -> float:
    """Tokens that a prompt may have."""
    generation = entry.model.generation
    context = None if generation.max_model_len is None else generation.max_model_len - 1
    limits = (context, generation.max_input_tokens, generation.kv_cache_tokens)
    return min((limit for limit in limits if limit is not None), default=inf)
