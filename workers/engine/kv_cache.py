"""Who owns which block of the KV cache, and which blocks still hold a prefix worth reusing.

Bookkeeping only: blocks are numbers here, the tensors are the runner's. A full block is known by its tokens and by the
block before it, compared exactly, so two different prefixes can never be taken for each other. A freed block keeps
its content until it is needed: least recently freed first, the end of a sequence before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import count

ROOT = 0
"""Content id of the empty prefix."""


@dataclass(slots=True)
class BlockTable:
    """The KV blocks of one sequence, in order."""

    block_ids: list[int] = field(default_factory=list)
    content_ids: list[int] = field(default_factory=list)
    """Content of the leading blocks that are full and known to the prefix cache."""


class KVCache:
    """Allocation, sharing and reuse of `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a KV cache needs blocks, got {num_blocks} of {block_size} tokens")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_users = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._content_ids = count(ROOT + 1)

    @property
    def usage(self) -> float:
        """Share of blocks held by sequences."""
        return 1 - len(self._free) / self.num_blocks

    def attach_prefix(self, table: BlockTable, token_ids: list[int]) -> int:
        """Give an empty table the cached blocks of these tokens' longest known prefix; returns its length in tokens.

        At least one token is left to compute, since sampling needs its logits.
        """
        parent = ROOT
        for index in range((len(token_ids) - 1) // self.block_size):
            found = self._block_of.get((parent, self._tokens_of(token_ids, index)))
            if found is None:
                break
            block_id, parent = found
            self._free.pop(block_id, None)
            self._num_users[block_id] += 1
            table.block_ids.append(block_id)
            table.content_ids.append(parent)
        return len(table.block_ids) * self.block_size

    def reserve(self, table: BlockTable, num_tokens: int, *, num_spare: int = 0) -> bool:
        """Grow the table to hold `num_tokens`; False, and nothing changed, unless `num_spare` blocks stay free then."""
        num_missing = -(-num_tokens // self.block_size) - len(table.block_ids)
        if num_missing <= 0:
            return True
        if num_missing + num_spare > len(self._free):
            return False
        table.block_ids.extend(self._take() for _ in range(num_missing))
        return True

    def commit(self, table: BlockTable, token_ids: list[int], num_computed_tokens: int) -> None:
        """Make blocks that are full by now known to the prefix cache."""
        for index in range(len(table.content_ids), num_computed_tokens // self.block_size):
            parent = table.content_ids[-1] if table.content_ids else ROOT
            key = (parent, self._tokens_of(token_ids, index))
            known = self._block_of.get(key)
            if known is None:
                block_id = table.block_ids[index]
                known = self._block_of[key] = (block_id, next(self._content_ids))
                self._key_of[block_id] = key
            table.content_ids.append(known[1])

    def release(self, table: BlockTable) -> None:
        """Take all blocks from the table."""
        for block_id in reversed(table.block_ids):
            self._num_users[block_id] -= 1
            if not self._num_users[block_id]:
                self._free[block_id] = None
        table.block_ids.clear()
        table.content_ids.clear()

    def _take(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]
        self._num_users[block_id] = 1
        return block_id

    def _tokens_of(self, token_ids: list[int], index: int) -> tuple[int, ...]:
        return tuple(token_ids[index * self.block_size : (index + 1) * self.block_size])
