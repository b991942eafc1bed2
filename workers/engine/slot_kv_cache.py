"""KV bookkeeping for runners that know sequences by number and own the cells themselves, as llama.cpp does.

Each running sequence has a slot (llama.cpp's sequence id). A finished one leaves its tokens behind, and a later prompt
that begins with them takes the slot over, or shares their cells from a slot of its own. Slots are remembered until
their cells are needed: least recently used first, the end of a sequence before its beginning. Cells are counted
exactly, shared ones once, so the runner never runs out. What it must do to its memory comes out as operations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from workers.engine.kv_cache import BlockTable
from workers.engine.runner import CopyPrefix, KVOperation, Truncate

SPARE_CELLS: Final = 16
"""What a sequence that runs is left to grow by when another is admitted."""
EVICTED_CELLS: Final = 64
"""Given up at a time: an operation costs the runner a look at all cells, so not one for every new token."""


@dataclass(slots=True)
class _Slot:
    """What one of the runner's sequences holds."""

    token_ids: list[int] = field(default_factory=list)
    """Tokens whose KV is computed."""
    cells: list[int] = field(default_factory=list)
    """A cell for each of these, then those reserved for tokens to come. Numbers of our own, only to count by."""
    longest: int = 0
    """Tokens it held at most since it was empty."""


class SlotKVCache:
    """A `KVCache` of `num_slots` sequences that share `num_cells` cells of one token each."""

    def __init__(self, num_slots: int, num_cells: int, *, window: int | None = None) -> None:
        """`window` is the model's smallest sliding window: the runner forgets what lies before it.

        What the memory held before is not known here, so the first operations empty it.
        """
        if num_slots < 1 or num_cells < 1:
            raise ValueError(f"a KV cache needs slots and cells, got {num_slots} and {num_cells}")
        self._slots = [_Slot() for _ in range(num_slots)]
        self._window = window
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_slots))
        self._num_holders = [0] * num_cells
        self._num_running_holders = [0] * num_cells
        self._num_running_cells = 0
        self._free_cells = list(range(num_cells))
        self._operations: list[KVOperation] = [Truncate(slot_id, 0) for slot_id in range(num_slots)]

    @property
    def capacity(self) -> int:
        return len(self._num_holders)

    @property
    def usage(self) -> float:
        return self._num_running_cells / self.capacity

    def attach_prefix(self, table: BlockTable, token_ids: list[int]) -> int:
        """See `KVCache`. Also gives the table its slot; with none idle it stays empty, and `reserve` refuses it."""
        if not self._idle:
            return 0
        source, num_tokens = self._find_prefix(token_ids)
        target = self._choose_slot(source, num_tokens)
        if target == source:
            self._truncate(target, num_tokens)
        else:
            self._truncate(target, 0)
            self._copy_prefix(source, target, num_tokens)
        del self._idle[target]
        self._hold_running(self._slots[target].cells)
        table.block_ids.append(target)
        return num_tokens

    def reserve(self, table: BlockTable, num_tokens: int, *, num_spare: int = 0) -> bool:
        if not table.block_ids:
            return False
        slot = self._slots[table.block_ids[0]]
        num_missing = num_tokens - len(slot.cells)
        if num_missing <= 0:
            return True
        if num_missing + num_spare * SPARE_CELLS > self.capacity - self._num_running_cells:
            return False
        self._evict(num_missing)
        taken = [self._free_cells.pop() for _ in range(num_missing)]
        self._hold(taken)
        self._hold_running(taken)
        slot.cells.extend(taken)
        slot.longest = max(slot.longest, len(slot.cells))
        return True

    def commit(self, table: BlockTable, token_ids: list[int], num_computed_tokens: int) -> None:
        slot = self._slots[table.block_ids[0]]
        slot.token_ids.extend(token_ids[len(slot.token_ids) : num_computed_tokens])

    def release(self, table: BlockTable) -> None:
        for slot_id in table.block_ids:
            slot = self._slots[slot_id]
            for cell in slot.cells:
                self._num_running_holders[cell] -= 1
                self._num_running_cells -= not self._num_running_holders[cell]
            self._idle[slot_id] = None
            # A step that failed may have computed more than was committed.
            self._truncate(slot_id, len(slot.token_ids))
        table.block_ids.clear()

    def take_operations(self) -> list[KVOperation]:
        operations, self._operations = self._operations, []
        return operations

    def _find_prefix(self, token_ids: list[int]) -> tuple[int, int]:
        """The slot, idle or running, that holds most of these tokens' beginning, and how many they share."""
        limit = len(token_ids) - 1
        lengths = (
            (self._reusable(slot, _common_length(slot.token_ids, token_ids, limit)), slot_id)
            for slot_id, slot in enumerate(self._slots)
        )
        num_tokens, slot_id = max(lengths)
        return slot_id, num_tokens

    def _reusable(self, slot: _Slot, num_tokens: int) -> int:
        """How much of a shared beginning can be used: with a sliding window, all that was ever there or nothing.

        A slot that filled the window may have lost cells which a shorter beginning would look at: the runner gives away
        those that the *next* token would not look at, the first of them as soon as the window is full.
        """
        if self._window is None or slot.longest < self._window or num_tokens == slot.longest:
            return num_tokens
        return 0

    def _choose_slot(self, source: int, num_tokens: int) -> int:
        """An idle slot: the source when nothing is lost by that, else the least recently used other one."""
        if source in self._idle and num_tokens == len(self._slots[source].token_ids):
            return source
        return next((slot_id for slot_id in self._idle if slot_id != source), source)

    def _copy_prefix(self, source: int, target: int, num_tokens: int) -> None:
        if not num_tokens:
            return
        shared = self._slots[source].cells[:num_tokens]
        self._hold(shared)
        self._slots[target] = _Slot(self._slots[source].token_ids[:num_tokens], shared, longest=num_tokens)
        self._operations.append(CopyPrefix(source, target, num_tokens))

    def _truncate(self, slot_id: int, num_tokens: int) -> None:
        """Give up an idle slot's cells from `num_tokens` on."""
        slot = self._slots[slot_id]
        if len(slot.cells) > num_tokens:
            self._drop(slot.cells[num_tokens:])
            del slot.cells[num_tokens:], slot.token_ids[num_tokens:]
            self._operations.append(Truncate(slot_id, num_tokens))
        if not num_tokens:
            slot.longest = 0
            self._idle.move_to_end(slot_id, last=False)

    def _evict(self, num_cells: int) -> None:
        """Make `num_cells` free cells out of what idle slots remember. The caller knows that there are as many."""
        while (num_lacking := num_cells - len(self._free_cells)) > 0:
            slot_id = next(slot_id for slot_id in self._idle if self._slots[slot_id].cells)
            num_kept = len(self._slots[slot_id].cells) - max(num_lacking, EVICTED_CELLS)
            self._truncate(slot_id, 0 if self._window else max(num_kept, 0))

    def _hold(self, cells: Iterable[int]) -> None:
        for cell in cells:
            self._num_holders[cell] += 1

    def _hold_running(self, cells: Iterable[int]) -> None:
        for cell in cells:
            self._num_running_cells += not self._num_running_holders[cell]
            self._num_running_holders[cell] += 1

    def _drop(self, cells: Iterable[int]) -> None:
        for cell in cells:
            self._num_holders[cell] -= 1
            if not self._num_holders[cell]:
                self._free_cells.append(cell)


def _common_length(known: Sequence[int], token_ids: Sequence[int], limit: int) -> int:
    """Leading tokens that both have, `limit` at most."""
    limit = min(limit, len(known))
    if known[:limit] == token_ids[:limit]:
        return limit
    return next(index for index in range(limit) if known[index] != token_ids[index])
