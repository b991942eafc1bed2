"""KV bookkeeping in blocks: who owns which, and which of them still hold a prefix worth reusing.

Bookkeeping only: blocks are numbers here, the tensors are the runner's. A full block is known by its tokens and by the
block before it, compared exactly, so two different prefixes can never be taken for each other. A freed block keeps
its content until it is needed: least recently freed first, the end of a sequence before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count

from workers.engine.kv_cache import BlockTable
from workers.engine.runner import KVOperation

ROOT = 0
"""Content id of the empty prefix."""


class PagedKVCache:
    """A `KVCache` of `num_blocks` blocks of `block_size` tokens."""

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
    def capacity(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def usage(self) -> float:
        return 1 - len(self._free) / self.num_blocks

    def attach_prefix(self, table: BlockTable, token_ids: list[int]) -> int:
        """See `KVCache`; a prefix is known in whole blocks."""
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
        """See `KVCache`; to grow, each of the `num_spare` others is left one block."""
        num_missing = -(-num_tokens // self.block_size) - len(table.block_ids)
        if num_missing <= 0:
            return True
        if num_missing + num_spare > len(self._free):
            return False
        table.block_ids.extend(self._take() for _ in range(num_missing))
        return True

    def commit(self, table: BlockTable, token_ids: list[int], num_computed_tokens: int) -> None:
        """See `KVCache`; blocks that are full by now become known."""
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
        for block_id in reversed(table.block_ids):
            self._num_users[block_id] -= 1
            if not self._num_users[block_id]:
                self._free[block_id] = None
        table.block_ids.clear()
        table.content_ids.clear()

    def take_operations(self) -> list[KVOperation]:
        """None: a block's new content simply replaces its old one."""
        return []

    def _take(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]
        self._num_users[block_id] = 1
        return block_id

    def _tokens_of(self, token_ids: list[int], index: int) -> tuple[int, ...]:
        return tuple(token_ids[index * self.block_size : (index + 1) * self.block_size])
