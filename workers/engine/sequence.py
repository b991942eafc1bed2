"""One sequence being generated: its tokens, how far its KV is computed, and its clock.

The scheduler moves it between queues and owns its KV; the engine appends tokens. No torch, no text.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field

from model_registry.contract import GenerationRequest, SequenceTiming, Usage
from workers.engine.constraint import TokenConstraint
from workers.engine.kv_cache import BlockTable
from workers.engine.raw_logprobs import RawLogprobs
from workers.engine.text_stream import TextStream

_DRAW_BITS = 53


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """State of one `GenerationRequest` inside the engine."""

    request: GenerationRequest
    token_ids: list[int]
    """Prompt and generated ids."""
    num_prompt_tokens: int
    max_tokens: int
    """Generated tokens at most; the request's own limit cut to the context length."""
    end_token_ids: frozenset[int]
    """Ids that end the sequence as the model's end of sequence; empty with `ignore_eos`."""
    text_stream: TextStream
    prompt_logprobs: list[RawLogprobs] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as they were computed; only where they are wanted."""
    constraint: TokenConstraint | None = None
    """As far as its generated tokens lead."""
    table: BlockTable = field(default_factory=BlockTable)
    num_computed_tokens: int = 0
    """Leading tokens whose KV is in the cache."""
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache when the sequence first ran."""
    seed: int = field(init=False)
    scores_prompt: bool = field(init=False)
    """Whether it is to tell how likely the prompt's own tokens were."""
    generated_counts: dict[int, int] = field(default_factory=dict)
    """How often each id was generated."""
    arrived_at: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        seed = self.request.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed
        self.scores_prompt = self.request.sampling.num_prompt_logprobs is not None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens to run before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_prompt_tokens_told(self) -> int:
        """Leading prompt tokens of which nobody has to find out any more how likely they were."""
        if not self.scores_prompt:
            return self.num_prompt_tokens
        return min(1 + len(self.prompt_logprobs), self.num_prompt_tokens)

    @property
    def known_token_ids(self) -> list[int]:
        """What may come from KV that is there: of a token that is not told yet, the logits before it are needed."""
        told = self.num_prompt_tokens_told
        return self.token_ids if told == self.num_prompt_tokens else self.token_ids[:told]

    @property
    def banned_token_ids(self) -> frozenset[int]:
        """What would end it now, and must not as long as anything else may come."""
        sampling = self.request.sampling
        banned = frozenset[int]() if self.may_end else self.end_token_ids.union(sampling.stop_token_ids)
        if self.constraint is not None and (sampling.ignore_eos or not self.may_end):
            banned |= self.constraint.end_token_ids
        return banned

    @property
    def may_end(self) -> bool:
        """Whether the next token may end the sequence."""
        return self.num_generated_tokens >= self.request.sampling.min_tokens

    def append(self, token_id: int) -> None:
        """The next generated token. Raises `RequestFaultError` where the constraint cannot follow it."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.token_ids.append(token_id)
        if self.constraint is not None and token_id not in self.end_token_ids:
            self.constraint.accept(token_id)
        self.generated_counts[token_id] = self.generated_counts.get(token_id, 0) + 1

    @property
    def is_complete(self) -> bool:
        """What its constraint asks for is there, and nothing can follow."""
        return self.constraint is not None and self.constraint.is_complete

    def draw(self) -> float:
        """The random number in [0, 1) that chooses the next token.

        A function of seed and position alone: the same whatever runs beside, after preemption, on a retried step or on
        another worker or device.
        """
        position = self.num_generated_tokens.to_bytes(8, "little")
        digest = hashlib.blake2b(position, digest_size=8, key=self.seed.to_bytes(16, "little", signed=True)).digest()
        return (int.from_bytes(digest, "little") >> (64 - _DRAW_BITS)) / (1 << _DRAW_BITS)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_generated_tokens,
            cached_tokens=self.num_cached_tokens,
        )

    def timing(self) -> SequenceTiming:
        now = time.monotonic()
        scheduled_at = self.scheduled_at or now
        first_token_at = self.first_token_at or now
        return SequenceTiming(
            queue_s=scheduled_at - self.arrived_at,
            prefill_s=first_token_at - scheduled_at,
            decode_s=now - first_token_at,
        )
