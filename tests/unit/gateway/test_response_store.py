"""The file that keeps responses: chains, bounds, and who may read it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from gateway import response_store, store_file
from gateway.response_store import ConversationTooLongError, KeptResponse, ResponseStore
from gateway.store_file import StoreError

MAX_BYTES = 1000


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(path: Path, clock: Clock | None = None, max_bytes: int = MAX_BYTES) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(path, max_bytes=max_bytes, keep_s=60, clock=clock or Clock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "responses.db"


def content(path: Path) -> bytes:
    return path.read_bytes()


def written(path: Path, data: bytes) -> None:
    """For anybody to read."""
    path.write_bytes(data)
    path.chmod(0o666)


def kept(name: str, previous: str | None = None, size: int = 100) -> KeptResponse:
    return KeptResponse(id=name, previous_id=previous, body=b"b" * (size - 2), input_items=b"[]")


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        [num_rows] = database.execute("SELECT count(*) FROM responses").fetchone()
    return int(num_rows)


async def names(store: ResponseStore, last: str) -> list[str]:
    return [one.id for one in await store.conversation(last)]


async def test_what_is_put_is_there_for_others_and_after_a_restart(path: Path) -> None:
    async with opened(path) as store, opened(path) as other:
        assert await store.put(kept("a"))
        assert await other.get("a") == kept("a")
        assert await other.get("b") is None
    async with opened(path) as store:
        assert await store.get("a") == kept("a")


async def test_a_conversation_comes_oldest_first(path: Path) -> None:
    async with opened(path) as store:
        for name, previous in (("a", None), ("b", "a"), ("c", "b"), ("side", "a")):
            await store.put(kept(name, previous))
        assert await names(store, "c") == ["a", "b", "c"]
        assert await names(store, "side") == ["a", "side"]
        assert await names(store, "none") == []


async def test_a_conversation_with_a_part_missing_is_none(path: Path) -> None:
    async with opened(path) as store:
        for name, previous in (("a", None), ("b", "a"), ("c", "b")):
            await store.put(kept(name, previous))
        assert await store.delete("b")
        assert not await store.delete("b")
        assert await names(store, "c") == []
        assert await store.get("c") is not None


async def test_a_conversation_may_be_too_long_to_be_read(path: Path) -> None:
    async with opened(path) as store:
        await store.put(kept("a"))
        await store.put(kept("b", "a"))
        assert len(await store.conversation("b", max_bytes=200)) == 2
        with pytest.raises(ConversationTooLongError, match="200 bytes"):
            await store.conversation("b", max_bytes=199)
        assert await names(store, "b") == ["a", "b"]


async def test_what_nobody_goes_on_with_is_forgotten_in_time(path: Path) -> None:
    clock = Clock()
    async with opened(path, clock) as store:
        for name, previous in (("a", None), ("b", "a"), ("idle", None)):
            await store.put(kept(name, previous))
        clock.now += 50
        await store.renew(["a", "b"])
        clock.now += 50
        assert await names(store, "b") == ["a", "b"]
        assert await store.get("idle") is None
        assert not await store.delete("idle")
        clock.now += 50
        assert await names(store, "b") == []


async def test_there_is_room_for_the_newest_only(path: Path) -> None:
    clock = Clock()
    async with opened(path, clock) as store:
        for number in range(30):
            clock.now += 1
            assert await store.put(kept(str(number)))
        assert [number for number in range(30) if await store.get(str(number))] == list(range(20, 30))


async def test_the_room_is_counted_also_after_deletions_and_restarts(path: Path) -> None:
    clock = Clock()
    async with opened(path, clock) as store:
        for number in range(10):
            await store.put(kept(str(number)))
            await store.delete(str(number))
    async with opened(path, clock) as store:
        for number in range(10):
            clock.now += 1
            await store.put(kept(str(number)))
        assert await store.get("0") is not None


async def test_what_is_larger_than_the_store_is_not_kept(path: Path) -> None:
    async with opened(path) as store:
        assert not await store.put(kept("a", size=MAX_BYTES + 1))
        assert await store.put(kept("b", size=MAX_BYTES))


async def test_only_its_owner_may_read_the_file(path: Path) -> None:
    written(path, b"")
    async with opened(path) as store:
        await store.put(kept("a"))
        modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert modes == dict.fromkeys(("responses.db", "responses.db-wal", "responses.db-shm"), 0o600)


async def test_what_is_deleted_is_not_left_in_the_file(path: Path) -> None:
    secret = KeptResponse(id="a", previous_id=None, body=b"a secret", input_items=b"[]")
    async with opened(path) as store:
        await store.put(secret)
    assert b"a secret" in content(path)
    async with opened(path) as store:
        await store.delete("a")
    assert b"a secret" not in content(path)


async def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(path: Path) -> None:
    written(path, b"precious" * 100)
    store = ResponseStore(path, max_bytes=MAX_BYTES, keep_s=60)
    with pytest.raises(StoreError, match=r"responses\.db: file is not a database"):
        await store.open()
    assert content(path) == b"precious" * 100
    await store.close()


async def test_tables_of_another_version_are_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    store = ResponseStore(path, max_bytes=MAX_BYTES, keep_s=60)
    with pytest.raises(StoreError, match="version 9, and 1 is needed; use another file"):
        await store.open()
    await store.close()


async def test_a_store_that_hangs_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        await store.put(kept("a"))
        monkeypatch.setattr(store_file, "TIMEOUT_S", 0.1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await store.get("a") == kept("a"), "reading waits for nobody"
            with pytest.raises(StoreError, match=r"did not answer within 0\.1 s"):
                await store.put(kept("b"))
            other.execute("ROLLBACK")
        monkeypatch.undo()
        assert await store.get("a") == kept("a")


async def test_what_comes_too_late_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        monkeypatch.setattr(store_file, "TIMEOUT_S", 0.1)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for name in ("begun", "queued"):
                with pytest.raises(StoreError, match=r"did not answer within 0\.1 s"):
                    await store.put(kept(name))
            other.execute("ROLLBACK")
        monkeypatch.undo()
        await store.put(kept("next"))
        assert [await store.get(name) is not None for name in ("begun", "queued", "next")] == [False, False, True]


async def test_what_is_being_made_final_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        make_final = store_file._Use.make_final

        def slowly(use: store_file._Use) -> bool:
            may_be = make_final(use)
            time.sleep(0.12)
            return may_be

        monkeypatch.setattr(store_file._Use, "make_final", slowly)
        monkeypatch.setattr(store_file, "TIMEOUT_S", 0.1)
        assert await store.put(kept("a"))
        assert await store.get("a") == kept("a")


async def test_reading_does_not_queue_behind_a_change_that_waits(path: Path) -> None:
    async with opened(path) as store:
        await store.put(kept("a"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            putting = asyncio.create_task(store.put(kept("b")))
            await asyncio.sleep(0.05)
            async with asyncio.timeout(1):
                assert await store.get("a") == kept("a")
                assert await names(store, "a") == ["a"]
            assert not putting.done()
            other.execute("ROLLBACK")
        assert await putting


async def test_the_time_of_many_may_end_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with opened(path, clock, max_bytes=100_000) as store:
        for number in range(250):
            await store.put(kept(str(number)))
        clock.now += 100
        left = []
        for number in range(3):
            await store.put(kept(f"new{number}"))
            left.append(rows(path))
        assert left == [151, 52, 3]
        clock.now += 100
        monkeypatch.setattr(response_store, "_MAX_REMOVED_BYTES", 150)
        await store.put(kept("last"))
        assert rows(path) == 2, "large ones cost more than small ones"


async def test_of_several_no_more_is_read_than_was_asked_for(path: Path) -> None:
    async with opened(path) as store:
        for name in ("a", "b"):
            await store.put(kept(name))
        assert [one.id for one in await store.get_all(["b", "a", "none"], max_bytes=200)] == ["b", "a"]
        with pytest.raises(ConversationTooLongError, match="200 bytes"):
            await store.get_all(["b", "a"], max_bytes=199)


async def test_stores_that_open_and_write_at_once_do_not_disturb_each_other(path: Path) -> None:
    async def write(name: str) -> None:
        async with opened(path, max_bytes=100_000) as store:
            for number in range(20):
                assert await store.put(kept(f"{name}{number}", f"{name}{number - 1}" if number else None))

    await asyncio.gather(*map(write, "abcd"))
    async with opened(path, max_bytes=100_000) as store:
        assert [len(await store.conversation(f"{name}19")) for name in "abcd"] == [20] * 4
