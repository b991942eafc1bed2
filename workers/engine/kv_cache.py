"""The seam between the scheduler and whoever keeps the books of the KV memory.

Two kinds exist. `PagedKVCache` hands out numbered blocks of a fixed number of tokens, for runners with tensors of our
own. `SlotKVCache` gives each sequence one slot, for runners such as llama.cpp that own their cells and know sequences
by number. The scheduler cannot tell them apart. Bookkeeping only: no tensor, no library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from workers.engine.runner import KVOperation


@dataclass(slots=True)
class BlockTable:
    """Where the KV of one sequence lies: its blocks in order, or the one slot that holds all of it."""

    block_ids: list[int] = field(default_factory=list)
    content_ids: list[int] = field(default_factory=list)
    """Content of the leading blocks that are full and known to a paged cache's prefixes."""


class KVCache(Protocol):
    """Allocation, sharing and reuse of KV memory. Only the engine thread calls it."""

    @property
    def capacity(self) -> int:
        """Tokens it holds at most."""

    @property
    def usage(self) -> float:
        """Share held by sequences that run, 0 to 1; what is only remembered counts as free."""

    def attach_prefix(self, table: BlockTable, token_ids: list[int]) -> int:
        """Give an empty table the known KV of these tokens' longest prefix; returns its length in tokens.

        At least one token is left to compute, since sampling needs its logits.
        """

    def reserve(self, table: BlockTable, num_tokens: int, *, num_spare: int = 0) -> bool:
        """Make room for `num_tokens` in the table; False, and nothing is taken, when there is none.

        `num_spare` other sequences must still be able to grow a little afterwards.
        """

    def commit(self, table: BlockTable, token_ids: list[int], num_computed_tokens: int) -> None:
        """Note that the KV of the first `num_computed_tokens` is there, so that it can be a prefix of others."""

    def release(self, table: BlockTable) -> None:
        """Take everything from the table; an empty one is fine."""

    def take_operations(self) -> list[KVOperation]:
        """What the runner must do to its memory before the next step, in order; each is handed out once."""
