"""Which sequences run in the next step, and how many tokens of each.

Iteration-level scheduling: running sequences decode one token each, then prompts are prefilled in chunks with what is
left of the step's budget of tokens and logits rows, first come first served. When KV memory runs out, the newest
sequence gives its own back and is computed again later (its tokens are kept). Knows sequences and KV bookkeeping; no
torch, no text.
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

    @property
    def num_prompt_logits(self) -> int:
        """Logits rows that tell how likely the prompt's next tokens were."""
        if not self.sequence.scores_prompt:
            return 0
        start, told = self.sequence.num_computed_tokens, self.sequence.num_prompt_tokens_told
        end = min(start + self.num_tokens, self.sequence.num_prompt_tokens - 1)
        return max(0, end - max(start, told - 1))

    @property
    def num_logits(self) -> int:
        return self.num_prompt_logits + self.completes

    def chunk(self) -> Chunk:
        start = self.sequence.num_computed_tokens
        return Chunk(
            token_ids=self.sequence.token_ids[start : start + self.num_tokens],
            start=start,
            block_ids=self.sequence.table.block_ids,
            num_logits=self.num_logits,
        )


class Scheduler:
    """Owner of the waiting and running queues and of the sequences' KV blocks."""

    def __init__(
        self, kv_cache: KVCache, *, max_batch_size: int, max_batch_tokens: int, max_logits_rows: int | None = None
    ) -> None:
        """Without `max_logits_rows`, a step may have one for each of its tokens."""
        self.resize(
            kv_cache,
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
            max_logits_rows=max_logits_rows,
        )
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

    def resize(
        self, kv_cache: KVCache, *, max_batch_size: int, max_batch_tokens: int, max_logits_rows: int | None = None
    ) -> None:
        """Other KV memory and other limits; only while nothing runs."""
        self._kv_cache = kv_cache
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max(max_batch_tokens, max_batch_size)
        self._max_logits_rows = max(max_logits_rows or self._max_batch_tokens, max_batch_size)

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
            if sequence.num_remaining_tokens > 1 and spent < budget:
                step.append(self._prefill(sequence, budget - spent, step))
                spent += step[-1].num_tokens
        return spent

    def _prefill(self, sequence: Sequence, budget: int, step: list[Scheduled]) -> Scheduled:
        """As much of the sequence as the budget and the logits rows allow, at least one token.

        Each of those that may still join the step is left a row: for most, one is all that they ever want.
        """
        part = Scheduled(sequence, min(sequence.num_remaining_tokens, budget))
        if not part.num_prompt_logits:
            return part
        num_others = min(self._max_batch_size, len(self._running) + len(self._waiting)) - len(step) - 1
        room = self._max_logits_rows - sum(one.num_logits for one in step) - max(num_others, 0)
        return Scheduled(sequence, part.num_tokens - max(part.num_logits - room, 0))

    def _admit(self, step: list[Scheduled], budget: int) -> None:
        """Start waiting sequences in order, as long as batch, budget and KV cache have room."""
        while self._waiting and budget > 0 and len(self._running) < self._max_batch_size:
            sequence = self._waiting[0]
            cached = self._kv_cache.attach_prefix(sequence.table, sequence.known_token_ids)
            # Running sequences grow; without room for that the next token of one would preempt the newcomer.
            if not self._kv_cache.reserve(sequence.table, len(sequence.token_ids), num_spare=len(self._running)):
                self._kv_cache.release(sequence.table)
                return
            self._start(self._waiting.popleft(), cached)
            step.append(self._prefill(sequence, budget, step))
            budget -= step[-1].num_tokens

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
