"""The seam between the scheduler and the hardware: a step plan goes in, logits rows come out.

The plan is plain integers, so schedulers and runners can be tested apart, and a tensor-parallel group can send the
same plan to all its ranks. Knows neither torch nor any library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LogitsRows = Any
"""Each chunk's `num_logits` rows, in the order of its tokens, chunks in plan order. A slice of rows is rows too; only
the runner's own sampler looks inside."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence to run in this step: one for decode, many for prefill."""

    token_ids: Sequence[int]
    start: int
    """Position of the first of them in the sequence; everything before it is in the KV cache."""
    block_ids: Sequence[int]
    """KV blocks of the sequence in order, enough to hold all tokens up to the end of this chunk; or its one slot."""
    num_logits: int
    """Of so many of its last tokens the logits are wanted: none for a prefill chunk that is not the prompt's last, one
    to sample from, more to tell how likely a prompt's own tokens are."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class CopyPrefix:
    """The first `num_tokens` of slot `source` become the content of slot `target`, which is empty."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """A slot keeps its first `num_tokens` and forgets the rest."""

    slot: int
    num_tokens: int


KVOperation = CopyPrefix | Truncate
"""What a `SlotKVCache` asks of the memory it keeps the books of."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One engine step: first the operations in order, then all chunks together."""

    chunks: Sequence[Chunk]
    kv_operations: Sequence[KVOperation] = ()


class ModelRunner(Protocol):
    """Runs a model over its own KV cache.

    Running the same chunk again is harmless: it writes the same KV. Operations are carried out exactly once and before
    anything that can fail, so a step that is run again comes without them.
    """

    def run(self, plan: StepPlan) -> LogitsRows: ...
