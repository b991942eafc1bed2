"""Which sequences run in the next step, and how many tokens of each.

Iteration-level scheduling: running sequences decode one token each, then prompts are prefilled in chunks with what is
left of the step's token budget, first come first served. When KV memory runs out, the newest sequence gives its own
back and is computed again later (its tokens are kept). Knows sequences and KV bookkeeping; no torch, no text.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from workers.engine.kv_cache import KVCache
from workers.engine.runner import Chunk, KVOperation
from workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One sequence's part of a step."""

    sequence: Sequence
    num_tokens: int

    @property
    def completes(self) -> bool:
        """Whether a new token can be sampled after this step."""
        return self.num_tokens == self.sequence.num_remaining_tokens

    def chunk(self) -> Chunk:
        start = self.sequence.num_computed_tokens
        return Chunk(
            token_ids=self.sequence.token_ids[start : start + self.num_tokens],
            start=start,
            block_ids=self.sequence.table.block_ids,
            wants_logits=self.completes,
        )


class Scheduler:
    """Owner of the waiting and running queues and of the sequences' KV blocks."""

    def __init__(self, kv_cache: KVCache, *, max_batch_size: int, max_batch_tokens: int) -> None:
        self.resize(kv_cache, max_batch_size=max_batch_size, max_batch_tokens=max_batch_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def kv_cache_usage(self) -> float:
        return self._kv_cache.usage

    def take_kv_operations(self) -> list[KVOperation]:
        """What the runner must do to its memory before the step just scheduled; each is handed out once."""
        return self._kv_cache.take_operations()

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was aborted, and free its blocks."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._kv_cache.release(sequence.table)

    def preempt_all(self) -> None:
        """Take the KV memory from every running sequence; each is computed again, in the order in which they came."""
        while self._running:
            self._preempt(self._running[-1])

    def resize(self, kv_cache: KVCache, *, max_batch_size: int, max_batch_tokens: int) -> None:
        """Other KV memory and other limits; only while nothing runs."""
        self._kv_cache = kv_cache
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max(max_batch_tokens, max_batch_size)

    def schedule(self) -> list[Scheduled]:
        """The next step; empty only when there is nothing to run."""
        step = self._schedule_decodes()
        budget = self._max_batch_tokens - len(step)
        budget -= self._schedule_prefills(step, budget)
        self._admit(step, budget)
        if not step and self._waiting:
            raise RuntimeError(
                f"a sequence of {len(self._waiting[0].token_ids)} tokens does not fit into the KV cache of "
                f"{self._kv_cache.capacity} tokens"
            )
        return step

    def commit(self, scheduled: Scheduled) -> None:
        """Note that a sequence's part of the step was computed."""
        sequence = scheduled.sequence
        sequence.num_computed_tokens += scheduled.num_tokens
        self._kv_cache.commit(sequence.table, sequence.token_ids, sequence.num_computed_tokens)

    def _schedule_decodes(self) -> list[Scheduled]:
        return [
            Scheduled(sequence, 1)
            for sequence in self._running.copy()
            if sequence.num_remaining_tokens == 1 and self._reserve_or_preempt(sequence)
        ]

    def _schedule_prefills(self, step: list[Scheduled], budget: int) -> int:
        """Continue prompts that are already running, whose blocks they got at admission; returns the tokens spent."""
        spent = 0
        for sequence in self._running:
            num_tokens = min(sequence.num_remaining_tokens, budget - spent)
            if sequence.num_remaining_tokens > 1 and num_tokens > 0:
                step.append(Scheduled(sequence, num_tokens))
                spent += num_tokens
        return spent

    def _admit(self, step: list[Scheduled], budget: int) -> None:
        """Start waiting sequences in order, as long as batch, budget and KV cache have room."""
        while self._waiting and budget > 0 and len(self._running) < self._max_batch_size:
            sequence = self._waiting[0]
            cached = self._kv_cache.attach_prefix(sequence.table, sequence.token_ids)
            # Running sequences grow; without room for that the next token of one would preempt the newcomer.
            if not self._kv_cache.reserve(sequence.table, len(sequence.token_ids), num_spare=len(self._running)):
                self._kv_cache.release(sequence.table)
                return
            self._start(self._waiting.popleft(), cached)
            num_tokens = min(sequence.num_remaining_tokens, budget)
            step.append(Scheduled(sequence, num_tokens))
            budget -= num_tokens

    def _start(self, sequence: Sequence, num_cached_tokens: int) -> None:
        sequence.num_computed_tokens = num_cached_tokens
        if sequence.scheduled_at is None:
            sequence.scheduled_at = time.monotonic()
            sequence.num_cached_tokens = num_cached_tokens
        self._running.append(sequence)

    def _reserve_or_preempt(self, sequence: Sequence) -> bool:
        """Room for one more token, taken from newer sequences if need be; False when its own blocks were taken."""
        while sequence in self._running:
            if self._kv_cache.reserve(sequence.table, len(sequence.token_ids)):
                return True
            self._preempt(self._running[-1])
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._kv_cache.release(sequence.table)
        sequence.num_computed_tokens = 0
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1
