"""Slots and cells are never overdrawn, and a reused prefix is what the runner's memory really holds.

The memory is a plain model of llama.cpp's: cells that belong to sequences at positions. It does what the operations say
and refuses what llama.cpp would refuse, so any book that differs from it shows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_registry.contract import GenerationRequest, SamplingParams, SequenceOutput, TokenPrompt
from workers.engine.echo import END_OF_PROMPT, END_OF_SEQUENCE, ByteTokenizer, EchoSampler
from workers.engine.engine import Engine, EngineLimits, EngineSizes
from workers.engine.kv_cache import BlockTable
from workers.engine.runner import CopyPrefix, KVOperation, StepPlan, Truncate
from workers.engine.slot_kv_cache import SlotKVCache
from workers.runners.grammar import GrammarCompiler

OVERWRITTEN = -1
"""In a cell of which llama.cpp has made another's."""


@dataclass
class Memory:
    """What llama.cpp holds: per sequence its cells in order; a cell is the token in it."""

    num_cells: int
    window: int | None = None
    slots: dict[int, list[list[int]]] = field(default_factory=dict)

    def carry_out(self, operations: list[KVOperation]) -> None:
        for operation in operations:
            if isinstance(operation, CopyPrefix):
                assert not self.slots.get(operation.target), "the target of a copy must be empty"
                prefix = self.slots[operation.source][: operation.num_tokens]
                assert len(prefix) == operation.num_tokens, "there is less to copy than the books say"
                self.slots[operation.target] = prefix
            else:
                self.slots[operation.slot] = self.slots.get(operation.slot, [])[: operation.num_tokens]

    def append(self, slot: int, start: int, token_ids: list[int]) -> None:
        cells = self.slots.setdefault(slot, [])
        del cells[start:]  # as the runner does before it runs a chunk
        assert len(cells) == start, "positions must be consecutive"
        cells.extend([token_id] for token_id in token_ids)
        assert self.num_used <= self.num_cells, "llama_decode would find no cell"

    @property
    def num_used(self) -> int:
        return len({id(cell) for cells in self.slots.values() for cell in cells})

    def content(self, slot: int) -> list[int]:
        return [token_id for (token_id,) in self.slots.get(slot, [])]

    def is_as_computed(self, slot: int, token_ids: list[int]) -> bool:
        """Whether the next token would look at these, and at nothing else."""
        first_seen = max(0, len(token_ids) + 1 - self.window) if self.window else 0
        content = self.content(slot)
        return len(content) == len(token_ids) and content[first_seen:] == token_ids[first_seen:]

    def overwrite_unseen(self) -> None:
        """llama.cpp may give a cell of one sequence to another when the first's next token would not look at it."""
        holders = Counter(id(cell) for cells in self.slots.values() for cell in cells)
        for cells in self.slots.values():
            num_unseen = max(0, len(cells) + 1 - self.window) if self.window else 0
            for cell in cells[:num_unseen]:
                if holders[id(cell)] == 1:
                    cell[0] = OVERWRITTEN


@dataclass
class Running:
    """A sequence as the scheduler would drive it."""

    token_ids: list[int]
    table: BlockTable = field(default_factory=BlockTable)
    num_computed: int = 0
    has_failed: bool = False


class Driver:
    """Runs sequences over a cache and a memory, checking after every act that they agree."""

    def __init__(self, num_slots: int, num_cells: int, window: int | None) -> None:
        self.cache = SlotKVCache(num_slots, num_cells, window=window)
        self.memory = Memory(num_cells, window)
        self.running: list[Running] = []
        self.num_slots = num_slots

    def admit(self, token_ids: list[int]) -> int | None:
        """The length of the reused prefix; None when there is no room."""
        sequence = Running(token_ids)
        cached = self.cache.attach_prefix(sequence.table, token_ids)
        admitted = self.cache.reserve(sequence.table, len(token_ids), num_spare=len(self.running))
        if not admitted:
            self.cache.release(sequence.table)
        self.memory.carry_out(self.cache.take_operations())
        if not admitted:
            return None
        sequence.num_computed = cached
        assert cached < len(token_ids), "a token is left to compute"
        (slot,) = sequence.table.block_ids
        assert self.memory.is_as_computed(slot, token_ids[:cached])
        self.running.append(sequence)
        return cached

    def compute(self, sequence: Running, num_tokens: int, *, fails: bool) -> None:
        end = min(sequence.num_computed + num_tokens, len(sequence.token_ids))
        (slot,) = sequence.table.block_ids
        self.memory.append(slot, sequence.num_computed, [])
        if not self.memory.is_as_computed(slot, sequence.token_ids[: sequence.num_computed]):
            assert sequence.has_failed, "the runner says so when a step that failed has made it forget"
            self.release(sequence)
            return
        self.memory.append(slot, sequence.num_computed, sequence.token_ids[sequence.num_computed : end])
        sequence.has_failed |= fails
        if not fails:
            sequence.num_computed = end
            self.cache.commit(sequence.table, sequence.token_ids, end)

    def grow(self, sequence: Running, token_id: int) -> None:
        if self.cache.reserve(sequence.table, len(sequence.token_ids) + 1):
            sequence.token_ids.append(token_id)
        self.memory.carry_out(self.cache.take_operations())

    def release(self, sequence: Running) -> None:
        self.cache.release(sequence.table)
        self.running.remove(sequence)
        self.memory.carry_out(self.cache.take_operations())

    def check(self) -> None:
        assert self.memory.num_used <= self.memory.num_cells
        assert len(self.running) <= self.num_slots
        slots = [sequence.table.block_ids[0] for sequence in self.running]
        assert len(set(slots)) == len(slots), "two sequences in one slot"
        assert 0 <= self.cache.usage <= 1


tokens = st.lists(st.integers(0, 1), min_size=1, max_size=24)
acts = st.lists(st.tuples(st.sampled_from("aaacccgrf"), st.integers(0, 7), st.integers(1, 12), tokens), max_size=60)


windows = st.sampled_from((None, 2, 3, 5, 8))


AS_LONG_AS_THE_WINDOW = [("a", 0, 1, [0, 1]), ("c", 0, 2, [0]), ("r", 0, 1, [0]), ("a", 0, 1, [0, 0])]


@given(num_slots=st.integers(1, 5), num_cells=st.integers(8, 80), window=windows, acts=acts)
@example(num_slots=2, num_cells=8, window=2, acts=AS_LONG_AS_THE_WINDOW)
def test_books_and_memory_agree_whatever_happens(
    num_slots: int, num_cells: int, window: int | None, acts: list[tuple[str, int, int, list[int]]]
) -> None:
    driver = Driver(num_slots, num_cells, window)
    for act, which, amount, token_ids in acts:
        if act == "a":
            driver.admit(token_ids)
        elif driver.running:
            sequence = driver.running[which % len(driver.running)]
            if act in "cf":
                driver.compute(sequence, amount, fails=act == "f")
            elif act == "g":
                driver.grow(sequence, amount % 2)
            else:
                driver.release(sequence)
        driver.memory.overwrite_unseen()
        driver.check()
    for sequence in driver.running.copy():
        driver.release(sequence)
    assert driver.cache.usage == 0
    assert driver.cache.reserve(attached(driver.cache), num_cells), "every cell can be had again"


def attached(cache: SlotKVCache) -> BlockTable:
    """A table with a slot and no prefix."""
    table = BlockTable()
    cache.attach_prefix(table, [99])
    return table


def fill(cache: SlotKVCache, token_ids: list[int]) -> tuple[BlockTable, int]:
    table = BlockTable()
    cached = cache.attach_prefix(table, token_ids)
    assert cache.reserve(table, len(token_ids))
    cache.commit(table, token_ids, len(token_ids))
    return table, cached


def fresh(num_slots: int, num_cells: int, window: int | None = None) -> SlotKVCache:
    cache = SlotKVCache(num_slots, num_cells, window=window)
    cache.take_operations()
    return cache


def test_what_the_memory_held_before_is_emptied_first() -> None:
    assert SlotKVCache(2, 8).take_operations() == [Truncate(0, 0), Truncate(1, 0)]


def test_a_conversation_that_goes_on_keeps_its_slot_and_moves_nothing() -> None:
    cache = fresh(4, 64)
    first, _ = fill(cache, [1, 2, 3])
    (slot,) = first.block_ids
    cache.release(first)
    again, cached = fill(cache, [1, 2, 3, 4, 5])
    assert (again.block_ids, cached, cache.take_operations()) == ([slot], 3, [])


def test_a_prefix_of_a_longer_content_is_shared_and_the_content_stays() -> None:
    cache = fresh(4, 64)
    first, _ = fill(cache, [1, 2, 3, 4, 5])
    (source,) = first.block_ids
    cache.release(first)
    second, cached = fill(cache, [1, 2, 3, 9])
    (target,) = second.block_ids
    assert (cached, cache.take_operations()) == (3, [CopyPrefix(source, target, 3)])
    assert cache.attach_prefix(BlockTable(), [1, 2, 3, 4, 5, 6]) == 5


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    cache = fresh(2, 10)
    fill(cache, [1, 2, 3, 4])
    table = BlockTable()
    assert cache.attach_prefix(table, [1, 2, 3, 4, 5]) == 4
    assert cache.reserve(table, 10 - 4 + 4), "shared cells count once"
    assert not cache.reserve(table, 11)


def test_one_token_is_always_left_to_compute() -> None:
    cache = fresh(2, 16)
    cache.release(fill(cache, [1, 2, 3])[0])
    assert cache.attach_prefix(BlockTable(), [1, 2, 3]) == 2


def test_the_least_recently_used_content_goes_first_and_its_end_before_its_beginning() -> None:
    cache = fresh(4, 400)
    old, young = list(range(150)), list(range(1000, 1150))
    for token_ids in (old, young):
        cache.release(fill(cache, token_ids)[0])
    big, _ = fill(cache, list(range(5000, 5110)))
    cache.release(big)
    assert cache.attach_prefix(BlockTable(), [*young, 0]) == 150
    assert 0 < cache.attach_prefix(BlockTable(), [*old, 0]) < 150


def test_a_reservation_that_does_not_fit_takes_and_forgets_nothing() -> None:
    cache = fresh(3, 10)
    cache.release(fill(cache, [1, 2, 3, 4])[0])
    table = attached(cache)
    assert not cache.reserve(table, 11)
    assert not cache.reserve(table, 5, num_spare=1)
    assert cache.take_operations() == []
    assert cache.reserve(table, 10)


def test_without_an_idle_slot_there_is_no_room() -> None:
    cache = fresh(1, 10)
    fill(cache, [1])
    table = BlockTable()
    assert cache.attach_prefix(table, [1, 2]) == 0
    assert not cache.reserve(table, 2)
    cache.release(table)


def test_what_was_computed_beyond_the_last_commit_is_forgotten() -> None:
    cache = fresh(1, 10)
    table = attached(cache)
    assert cache.reserve(table, 6)
    cache.commit(table, [1, 2, 3, 4, 5, 6], 4)
    cache.release(table)
    assert cache.take_operations() == [Truncate(0, 4)]


@pytest.mark.parametrize(("length", "shared", "cached"), [(20, 12, 0), (20, 20, 20), (8, 5, 0), (7, 5, 5)])
def test_past_a_sliding_window_only_the_whole_content_is_a_prefix(length: int, shared: int, cached: int) -> None:
    """The runner has forgotten cells before the window, which a shorter prefix would have to look at."""
    cache = fresh(2, 64, window=8)
    cache.release(fill(cache, list(range(length)))[0])
    assert cache.attach_prefix(BlockTable(), [*range(shared), 99]) == cached


def test_a_cache_without_slots_or_cells_is_refused() -> None:
    for size in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match="needs slots and cells"):
            SlotKVCache(*size)


class MemoryRunner:
    """Echoes each prompt out of the plain memory; every third step fails half-way, after the memory was written."""

    def __init__(self, num_cells: int) -> None:
        self.memory = Memory(num_cells)
        self.num_runs = 0

    def run(self, plan: StepPlan) -> list[int]:
        self.memory.carry_out(list(plan.kv_operations))
        for chunk in plan.chunks:
            self.memory.append(chunk.block_ids[0], chunk.start, list(chunk.token_ids))
        self.num_runs += 1
        if len(plan.chunks) > 1 and self.num_runs % 3 == 0:
            raise RuntimeError("a step that failed")
        return [self._next(chunk.block_ids[0]) for chunk in plan.chunks if chunk.num_logits]

    def _next(self, slot: int) -> int:
        token_ids = self.memory.content(slot)
        num_prompt = token_ids.index(END_OF_PROMPT)
        position = len(token_ids) - num_prompt - 1
        return END_OF_SEQUENCE if position == num_prompt else token_ids[position]


prompts = st.lists(st.lists(st.sampled_from(b"ab"), min_size=1, max_size=30), min_size=1, max_size=12)


@given(prompts=prompts, num_cells=st.integers(64, 160), num_slots=st.integers(3, 8), batch_tokens=st.integers(16, 40))
def test_the_whole_engine_echoes_out_of_the_memory_also_when_cells_are_short_and_steps_fail(
    prompts: list[list[int]], num_cells: int, num_slots: int, batch_tokens: int
) -> None:
    engine = Engine(
        MemoryRunner(num_cells),
        EchoSampler(),
        ByteTokenizer(),
        GrammarCompiler(ByteTokenizer()),
        EngineSizes(
            lambda: SlotKVCache(num_slots, num_cells),
            EngineLimits(max_model_len=64, max_batch_size=3, max_batch_tokens=batch_tokens),
        ),
    )
    for number, prompt in enumerate(prompts):
        request = GenerationRequest(
            request_id=str(number), prompt=TokenPrompt(tuple(prompt)), sampling=SamplingParams()
        )
        engine.submit(engine.prepare(request))
    outputs: dict[str, SequenceOutput] = {}
    for _ in range(3_000):
        for output in engine.step():
            known = outputs.get(output.request_id)
            outputs[output.request_id] = known.followed_by(output) if known else output
        if not engine.has_work:
            break
    assert {key: output.text for key, output in outputs.items()} == {
        str(number): bytes(prompt).decode() for number, prompt in enumerate(prompts)
    }
    assert engine.status().kv_cache_usage == 0
