"""Blocks are never shared by mistake, never lost, and prefixes are found again."""

from __future__ import annotations

import random

import pytest

from workers.engine.kv_cache import BlockTable
from workers.engine.paged_kv_cache import PagedKVCache

BLOCK_SIZE = 4


def fill(cache: PagedKVCache, token_ids: list[int]) -> BlockTable:
    table = BlockTable()
    cache.attach_prefix(table, token_ids)
    assert cache.reserve(table, len(token_ids))
    cache.commit(table, token_ids, len(token_ids))
    return table


def test_a_prefix_computed_before_is_found_again_in_whole_blocks() -> None:
    cache = PagedKVCache(8, BLOCK_SIZE)
    first = fill(cache, list(range(10)))
    blocks = first.block_ids.copy()
    cache.release(first)
    again = BlockTable()
    assert cache.attach_prefix(again, [*range(8), 99, 100]) == 8
    assert again.block_ids == blocks[:2]


def test_one_token_is_always_left_to_compute() -> None:
    cache = PagedKVCache(8, BLOCK_SIZE)
    cache.release(fill(cache, list(range(8))))
    assert cache.attach_prefix(BlockTable(), list(range(8))) == 4


def test_the_same_block_after_another_prefix_is_another_block() -> None:
    cache = PagedKVCache(8, BLOCK_SIZE)
    cache.release(fill(cache, [1, 1, 1, 1, 2, 2, 2, 2, 0]))
    assert cache.attach_prefix(BlockTable(), [2, 2, 2, 2, 0]) == 0
    assert cache.attach_prefix(BlockTable(), [3, 3, 3, 3, 2, 2, 2, 2, 0]) == 0


def test_running_sequences_share_a_prefix_and_both_must_release_it() -> None:
    cache = PagedKVCache(4, BLOCK_SIZE)
    first = fill(cache, [1, 2, 3, 4, 5])
    second = fill(cache, [1, 2, 3, 4, 6])
    assert first.block_ids[0] == second.block_ids[0]
    cache.release(first)
    other = BlockTable()
    assert cache.reserve(other, 2 * BLOCK_SIZE)
    assert second.block_ids[0] not in other.block_ids


def test_a_block_taken_for_new_tokens_is_no_prefix_any_more() -> None:
    cache = PagedKVCache(2, BLOCK_SIZE)
    cache.release(fill(cache, [1, 2, 3, 4, 5]))
    cache.release(fill(cache, [6, 7, 8, 9, 10]))
    assert cache.attach_prefix(BlockTable(), [1, 2, 3, 4, 5]) == 0


def test_the_end_of_a_freed_sequence_is_taken_before_its_beginning() -> None:
    cache = PagedKVCache(3, BLOCK_SIZE)
    cache.release(fill(cache, list(range(12))))
    assert cache.reserve(BlockTable(), BLOCK_SIZE)
    assert cache.attach_prefix(BlockTable(), list(range(12))) == 8


def test_a_reservation_that_does_not_fit_changes_nothing() -> None:
    cache = PagedKVCache(2, BLOCK_SIZE)
    table = BlockTable()
    assert not cache.reserve(table, 3 * BLOCK_SIZE)
    assert not table.block_ids
    assert not cache.reserve(table, 2 * BLOCK_SIZE, num_spare=1)
    assert cache.reserve(table, 2 * BLOCK_SIZE)
    assert cache.usage == 1


def test_a_cache_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs blocks"):
        PagedKVCache(0, BLOCK_SIZE)


def test_random_use_never_gives_one_block_two_contents() -> None:
    """A model of what each block physically holds, checked whenever a prefix is reused."""
    generator = random.Random(0)
    cache = PagedKVCache(12, BLOCK_SIZE)
    content: dict[int, tuple[int, ...]] = {}
    live: list[BlockTable] = []
    for _ in range(3_000):
        if live and generator.random() < 0.5:
            cache.release(live.pop(generator.randrange(len(live))))
            continue
        tokens = [generator.randrange(2) for _ in range(generator.randrange(1, 20))]
        table = BlockTable()
        cached = cache.attach_prefix(table, tokens)
        for index in range(cached // BLOCK_SIZE):
            assert content[table.block_ids[index]] == tuple(tokens[: (index + 1) * BLOCK_SIZE])
        if not cache.reserve(table, len(tokens)):
            cache.release(table)
            continue
        for index in range(cached // BLOCK_SIZE, len(table.block_ids)):
            content[table.block_ids[index]] = tuple(tokens[: (index + 1) * BLOCK_SIZE])
        cache.commit(table, tokens, len(tokens))
        live.append(table)
    for table in live:
        cache.release(table)
    assert cache.usage == 0
