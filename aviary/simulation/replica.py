"""One replica in simulated time: how long its requests take beside each other, without a step or a token of its own.

A decode step takes `step_s` and, for each further sequence, `step_per_sequence_s`. All sequences that decode get one
token per step, so they share the replica equally (processor sharing): the number of steps it has made so far is its
own clock, on which each sequence ends a fixed number of steps after it began, however many come and go meanwhile.
Prompts are prefilled one after the other, in chunks of what is left of `max_batch_tokens`; meanwhile every step takes
as much longer as the chunk needs. The first token is there one decode step after its prompt. Nothing happens between
two changes of that state, so a request costs three events.

What this leaves out: steps are not whole, prefix reuse and preemption do not happen, and a sequence's KV cache is not
bounded once it decodes. Its user is `simulation`; times are seconds, requests are positions in the trace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from math import inf
from typing import Final

from aviary.simulation.trace import Trace
from model_registry.schema import RegistryEntry

_ROUNDING: Final = 1e-6
"""A millionth of a step or of a token: what sums of floats may miss."""


class Ending(StrEnum):
    """How a request ends; each ends in exactly one way."""

    DONE = "done"
    FULL = "full"
    """Refused at arrival, 429."""
    EXPIRED = "expired"
    """Its deadline passed, waiting or running, 504."""
    TOO_LONG = "too long"
    """Its prompt does not fit into the model's context or KV cache, 400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a replica can do. Measure it, or take it from `aviary bench` of others."""

    step_s: float
    """A decode step of one sequence."""
    step_per_sequence_s: float = 0.0
    """What each further sequence adds to a step."""
    prefill_tokens_per_s: float = 10_000.0
    cold_start_s: float = 60.0
    """From the decision to start a replica until it serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a replica, from its registry entry."""

    max_batch_size: int
    max_batch_tokens: int
    kv_cache_tokens: float = inf
    """Unbounded where the registry does not say: the simulator does not know the memory."""

    @classmethod
    def of(cls, entry: RegistryEntry) -> Limits:
        generation = entry.model.generation
        return cls(
            max_batch_size=generation.max_batch_size,
            max_batch_tokens=generation.max_batch_tokens,
            kv_cache_tokens=inf if generation.kv_cache_tokens is None else generation.kv_cache_tokens,
        )


class SimulatedReplica:
    """Requests on one replica, from the moment they are sent to it until they end."""

    def __init__(self, name: str, trace: Trace, speed: Speed, limits: Limits, timeout_s: float) -> None:
        self.name = name
        self.version = 0
        """Grows with every change: what was planned before it is void."""
        self.in_flight: dict[int, None] = {}
        """In order of arrival, which is the order of deadlines."""
        self._trace = trace
        self._speed = speed
        self._limits = limits
        self._timeout_s = timeout_s
        self._waiting: deque[int] = deque()
        self._prefilling: deque[int] = deque()
        self._prefill_left = 0.0
        """Tokens of the first of them that are not computed yet."""
        self._decoding: list[tuple[float, int]] = []
        """Heap of (steps after which it ends, request); may hold requests that have expired."""
        self._starts: dict[int, float] = {}
        """Of those that decode: the steps after which they began."""
        self._sum_of_starts = 0.0
        self._num_prompt_tokens = 0
        """Of those that prefill or decode."""
        self._at = 0.0
        """The moment that all this is of."""
        self._steps = 0.0
        """Made until then."""
        self._decode_step_s = self._step_s = speed.step_s
        """Without and with the prefill that goes on beside it."""
        self._chunk = limits.max_batch_tokens

    @property
    def num_running(self) -> int:
        """Sequences in its steps."""
        return len(self._prefilling) + len(self._starts)

    @property
    def kv_tokens(self) -> float:
        """Tokens of which the KV cache holds something, as of the last change."""
        return self._num_prompt_tokens + len(self._starts) * self._steps - self._sum_of_starts

    @property
    def kv_cache_usage(self) -> float:
        return min(1.0, self.kv_tokens / self._limits.kv_cache_tokens)

    @property
    def num_tokens(self) -> int:
        """Of everything that was sent to it: prompts, and what has been generated."""
        prompts = self._trace.prompt_tokens
        return sum(prompts[request] for request in self.in_flight) + round(
            len(self._starts) * self._steps - self._sum_of_starts
        )

    def submit(self, request: int, now: float) -> None:
        """Send it a request."""
        self._catch_up(now)
        self.in_flight[request] = None
        self._waiting.append(request)
        self._admit()
        self._set_pace()

    def advance(self, now: float, first_token_at: dict[int, float]) -> list[tuple[int, Ending]]:
        """Go on to this moment, which is not after `next_change`; returns what has ended, and notes first tokens."""
        self._catch_up(now)
        first = self._finish_prefill()
        ended = [*self._finish_decodes(), *self._expire(now)]
        self._admit()
        self._set_pace()
        if first is not None:
            first_token_at[first] = now + self._decode_step_s
        return ended

    def next_change(self) -> float:
        """When something happens next, if nothing is sent to it until then."""
        next_at = inf
        if self._prefilling:
            next_at = self._at + self._prefill_left * self._step_s / self._chunk
        while self._decoding and self._decoding[0][1] not in self._starts:
            heappop(self._decoding)
        if self._decoding:
            next_at = min(next_at, self._at + (self._decoding[0][0] - self._steps) * self._step_s)
        for first in self.in_flight:
            return min(next_at, self._deadline(first))
        return next_at

    def _deadline(self, request: int) -> float:
        return self._trace.arrivals[request] + self._timeout_s

    def _catch_up(self, now: float) -> None:
        steps = (now - self._at) / self._step_s
        self._at = now
        self._steps += steps
        self._prefill_left -= steps * self._chunk

    def _set_pace(self) -> None:
        """How long a step takes from now on."""
        num_decoding = len(self._starts)
        self._decode_step_s = self._speed.step_s + self._speed.step_per_sequence_s * max(0, num_decoding - 1)
        self._step_s = self._decode_step_s
        if self._prefilling:
            self._chunk = max(1, self._limits.max_batch_tokens - num_decoding)
            self._step_s += self._chunk / self._speed.prefill_tokens_per_s

    def _admit(self) -> None:
        """Start what waits, in order, as long as batch and KV cache have room."""
        while self._waiting and self.num_running < self._limits.max_batch_size:
            num_prompt_tokens = self._trace.prompt_tokens[self._waiting[0]]
            if self.num_running and self.kv_tokens + num_prompt_tokens > self._limits.kv_cache_tokens:
                return
            self._num_prompt_tokens += num_prompt_tokens
            self._prefilling.append(self._waiting.popleft())
            if len(self._prefilling) == 1:
                self._prefill_left = num_prompt_tokens

    def _finish_prefill(self) -> int | None:
        """The request whose prompt has just been computed: from now on it decodes."""
        if not self._prefilling or self._prefill_left > _ROUNDING:
            return None
        request = self._next_prefill()
        self._starts[request] = self._steps
        self._sum_of_starts += self._steps
        heappush(self._decoding, (self._steps + self._trace.output_tokens[request], request))
        return request

    def _next_prefill(self) -> int:
        """Put the first prompt aside and go on with the next."""
        request = self._prefilling.popleft()
        if self._prefilling:
            self._prefill_left = self._trace.prompt_tokens[self._prefilling[0]]
        return request

    def _finish_decodes(self) -> Iterator[tuple[int, Ending]]:
        while self._decoding and self._decoding[0][0] <= self._steps + _ROUNDING:
            _, request = heappop(self._decoding)
            if request in self._starts:
                self._remove(request)
                yield request, Ending.DONE

    def _expire(self, now: float) -> Iterator[tuple[int, Ending]]:
        while self.in_flight and self._deadline(first := next(iter(self.in_flight))) <= now:
            self._remove(first)
            yield first, Ending.EXPIRED

    def _remove(self, request: int) -> None:
        """Forget a request, wherever it is."""
        del self.in_flight[request]
        start = self._starts.pop(request, None)
        if start is not None:
            self._sum_of_starts -= start
        elif request in self._waiting:
            self._waiting.remove(request)
            return
        elif request == self._prefilling[0]:
            self._next_prefill()
        else:
            self._prefilling.remove(request)
        self._num_prompt_tokens -= self._trace.prompt_tokens[request]
