"""Batches in their database: leases, results that are written once, ends, and what is forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest

from gateway import batch_store, line_store
from gateway.batch_states import ForbiddenChangeError
from gateway.batch_store import LeaseLostError, Outcome, TooManyBatchesError
from gateway.file_store import FileInUseError, NoRoomError
from gateway.line_store import Line, LineResult, LineStore
from gateway.offline import OfflineStores
from gateway.protocol.batches import Batch, BatchError, BatchErrors, BatchStatus, BatchUsage
from gateway.protocol.files import FileObject, Purpose

LEASE_S = 10.0
KEEP_S = 1000.0
LINES = [Line(number=number, custom_id=str(number), model="m", start=number, num_bytes=1) for number in range(1, 4)]


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(folder: Path, clock: Clock | None = None, max_bytes: int = 1000) -> AsyncIterator[OfflineStores]:
    stores = OfflineStores(folder, max_bytes=max_bytes, keep_s=KEEP_S, clock=clock or Clock())
    await stores.open()
    try:
        yield stores
    finally:
        await stores.close()


async def content(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 2):
        yield data[start : start + 2]


async def added(stores: OfflineStores, data: bytes = b"data", purpose: Purpose = "batch") -> FileObject:
    return await stores.files.add(content(data), filename="a.jsonl", purpose=purpose)


async def created(stores: OfflineStores, name: str = "batch_a") -> Batch:
    file = await added(stores)
    batch = Batch(
        id=name,
        endpoint="/v1/completions",
        input_file_id=file.id,
        completion_window="24h",
        created_at=0,
        expires_at=1,
    )
    assert await stores.batches.create(batch, output_expires_s=3600)
    return batch


async def in_progress(stores: OfflineStores, owner: str = "one") -> Batch:
    batch = await created(stores)
    await stores.batches.claim(owner, lease_s=LEASE_S, limit=10)
    await stores.lines.put(batch.id, owner, LINES)
    return await stores.batches.change(batch.id, owner, BatchStatus.IN_PROGRESS, model="m")


def result(number: int, text: bytes = b"x\n", *, is_success: bool = True) -> LineResult:
    return LineResult(number=number, is_success=is_success, text=text, usage=BatchUsage(input_tokens=2))


async def test_a_batch_is_run_by_one_and_taken_over_when_its_lease_is_over(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as stores, opened(tmp_path, clock) as others:
        batch = await created(stores)
        assert await stores.batches.claim("one", lease_s=LEASE_S, limit=10) == [batch]
        assert await others.batches.claim("two", lease_s=LEASE_S, limit=10) == []
        clock.now += LEASE_S - 1
        assert await stores.batches.renew("one", lease_s=LEASE_S) == {batch.id: BatchStatus.VALIDATING}
        clock.now += LEASE_S - 1
        assert await others.batches.claim("two", lease_s=LEASE_S, limit=10) == []
        clock.now += 1
        assert await others.batches.claim("two", lease_s=LEASE_S, limit=10) == [batch]
        assert await stores.batches.renew("one", lease_s=LEASE_S) == {}


async def test_a_batch_that_is_given_back_is_anybodys(tmp_path: Path) -> None:
    async with opened(tmp_path) as stores:
        batch = await in_progress(stores)
        await stores.batches.release(batch.id, "another")
        assert await stores.batches.claim("two", lease_s=LEASE_S, limit=10) == []
        await stores.batches.release(batch.id, "one")
        assert [one.id for one in await stores.batches.claim("two", lease_s=LEASE_S, limit=10)] == [batch.id]


async def test_whoever_has_lost_the_lease_changes_nothing_any_more(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as stores:
        batch = await in_progress(stores)
        await stores.lines.record(batch.id, "one", result(1))
        clock.now += LEASE_S
        await stores.batches.claim("two", lease_s=LEASE_S, limit=10)
        outcome = Outcome(status=BatchStatus.COMPLETED)
        for late in (
            stores.batches.owned(batch.id, "one"),
            stores.lines.record(batch.id, "one", result(2)),
            stores.lines.put(batch.id, "one", []),
            stores.lines.clear(batch.id, "one"),
            stores.batches.change(batch.id, "one", BatchStatus.FINALIZING),
            stores.batches.fail(batch.id, "one", BatchErrors(data=())),
            stores.batches.finish(batch.id, "one", outcome),
        ):
            with pytest.raises(LeaseLostError):
                await late
        assert [line.number for line in await stores.lines.open_lines(batch.id, "m", after=0, limit=9)] == [2, 3]


async def test_a_line_has_one_result_and_counts_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as stores:
        batch = await in_progress(stores)
        await stores.lines.record(batch.id, "one", result(1, b"first\n"))
        await stores.lines.record(batch.id, "one", result(1, b"second\n", is_success=False))
        await stores.lines.record(batch.id, "one", result(2, b"wrong\n", is_success=False))
        now = await stores.batches.owned(batch.id, "one")
        counts = now.request_counts
        assert (counts.total, counts.completed, counts.failed) == (3, 1, 1)
        assert now.usage.total_tokens == 4
        assert await stores.lines.results(batch.id, is_success=True, after=0, limit=9) == [(1, b"first\n")]
        assert await stores.lines.results(batch.id, is_success=False, after=0, limit=9) == [(2, b"wrong\n")]
        assert await stores.lines.open_models(batch.id) == ["m"]


async def test_an_end_comes_with_its_files(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as stores:
        batch = await in_progress(stores)
        await stores.lines.record(batch.id, "one", result(1))
        await stores.batches.change(batch.id, "one", BatchStatus.FINALIZING)
        file = await stores.files.write(content(b"output"), filename="o", purpose="batch_output", expires_after_s=3600)
        assert await stores.files.get(file.id) is None, "it is not there before the batch's end"
        outcome = Outcome(status=BatchStatus.EXPIRED, output_file=file, num_unanswered=2)
        await stores.batches.finish(batch.id, "one", outcome)
        assert await stores.files.get(file.id) == file
        over = await stores.batches.get(batch.id)
        assert over is not None
        assert (over.status, over.output_file_id, over.error_file_id) == (BatchStatus.EXPIRED, file.id, None)
        assert (over.request_counts.completed, over.request_counts.failed) == (1, 2)
        assert await stores.batches.claim("two", lease_s=LEASE_S, limit=10) == []
        assert (await stores.batches.num_by_status())[BatchStatus.EXPIRED] == 1


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"MAX_REMOVED": 2}, [2, 1]),
        ({"MAX_REMOVED_BYTES": 100}, [1, 2]),
        ({"MAX_REMOVED_BYTES": 101}, [2, 1]),
        ({}, [3]),
    ],
)
async def test_lines_are_removed_little_by_little_and_before_their_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, int], expected: list[int]
) -> None:
    def num_lines() -> int:
        with closing(sqlite3.connect(tmp_path / "files.db")) as database:
            [num_lines] = database.execute("SELECT COUNT(*) FROM lines").fetchone()
        return int(num_lines)

    removals = []
    remove = LineStore._remove

    def removed(lines: LineStore, batch_id: str) -> int:
        removals.append(remove(lines, batch_id))
        return removals[-1]

    for name, bound in bounds.items():
        monkeypatch.setattr(line_store, name, bound)
    monkeypatch.setattr(LineStore, "_remove", removed)
    clock = Clock()
    async with opened(tmp_path, clock) as stores:
        batch = await in_progress(stores)
        await stores.lines.record(batch.id, "one", result(1, b"x" * 100))
        await stores.lines.record(batch.id, "one", result(2, b"x"))
        await stores.lines.sweep()
        assert (removals, num_lines()) == ([], 3)
        await stores.batches.cancel(batch.id)
        await stores.batches.finish(batch.id, "one", Outcome(status=BatchStatus.CANCELLED))
        clock.now += KEEP_S
        await stores.batches.sweep()
        assert await stores.batches.get(batch.id) is not None
        await stores.lines.sweep()
        assert (removals, num_lines()) == (expected, 0)
        await stores.batches.sweep()
        assert await stores.batches.get(batch.id) is None


async def test_clients_cancel_what_is_not_over(tmp_path: Path) -> None:
    async with opened(tmp_path) as stores:
        batch = await in_progress(stores)
        for _ in range(2):
            cancelled = await stores.batches.cancel(batch.id)
            assert cancelled is not None
            assert cancelled.status is BatchStatus.CANCELLING
        with pytest.raises(ForbiddenChangeError):
            await stores.batches.change(batch.id, "one", BatchStatus.FINALIZING)
        await stores.batches.finish(batch.id, "one", Outcome(status=BatchStatus.CANCELLED))
        with pytest.raises(ForbiddenChangeError):
            await stores.batches.cancel(batch.id)
        assert await stores.batches.cancel("batch_x") is None


async def test_a_validation_that_was_cut_off_begins_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as stores:
        batch = await created(stores)
        await stores.batches.claim("one", lease_s=LEASE_S, limit=10)
        for _ in range(2):
            await stores.lines.clear(batch.id, "one")
            await stores.lines.put(batch.id, "one", LINES)
        assert (await stores.batches.owned(batch.id, "one")).request_counts.total == 3
        errors = BatchErrors(data=(BatchError(code="x", message="y", line=1),))
        await stores.batches.fail(batch.id, "one", errors)
        failed = await stores.batches.get(batch.id)
        assert failed is not None
        assert (failed.status, failed.errors) == (BatchStatus.FAILED, errors)


async def test_no_batch_is_made_of_what_is_no_input_nor_beyond_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_store, "MAX_ACTIVE", 2)
    async with opened(tmp_path) as stores:
        batch = await created(stores)
        output = await added(stores, purpose="batch_output")
        for file_id in (output.id, "file-x"):
            other = msgspec.structs.replace(batch, id="batch_x", input_file_id=file_id)
            assert not await stores.batches.create(other, output_expires_s=None)
        await created(stores, "batch_b")
        with pytest.raises(TooManyBatchesError):
            await created(stores, "batch_c")


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as stores:
        batches = [await created(stores, f"batch_{name}") for name in "abc"]
        assert await stores.batches.page(after=None, limit=2) == (batches[:0:-1], True)
        assert await stores.batches.page(after=batches[1].id, limit=2) == ([batches[0]], False)
        assert await stores.batches.page(after="batch_x", limit=2) is None


async def test_files_that_expired_are_gone_unless_a_batch_needs_them(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as stores:
        batch, idle = await created(stores), await added(stores)
        with pytest.raises(FileInUseError, match=batch.id):
            await stores.files.delete(batch.input_file_id)
        clock.now += KEEP_S
        assert await stores.files.get(idle.id) is None
        await stores.files.sweep()
        assert await stores.files.read(batch.input_file_id, 1, 2) == b"at"
        await stores.batches.claim("one", lease_s=LEASE_S, limit=10)
        await stores.batches.fail(batch.id, "one", BatchErrors(data=()))
        await stores.files.sweep()
        page = await stores.files.page(after=None, limit=9, newest_first=True, purpose=None)
        assert page == ([], False)


async def test_content_without_a_file_is_swept_away_once_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as stores:
        kept = await added(stores)
        await stores.files.write(content(b"never inserted"), filename="o", purpose="batch_output")
        await stores.files.sweep()
        assert len(list((tmp_path / "content").iterdir())) == 2, "it may be on its way"
        monkeypatch.setattr("gateway.file_store.ORPHANED_S", -1)
        await stores.files.sweep()
        assert [path.name for path in (tmp_path / "content").iterdir()] == [kept.id]


async def test_files_and_results_share_one_bound(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=20) as stores:
        batch = await in_progress(stores)
        assert await stores.files.has_room()
        await stores.lines.record(batch.id, "one", result(1, b"x" * 10))
        with pytest.raises(NoRoomError):
            await added(stores, b"x" * 7)
        await added(stores, b"x" * 6)
        assert not await stores.files.has_room()
        assert len(list((tmp_path / "content").iterdir())) == 2, "nothing is left of what was refused"


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError

    async with opened(tmp_path) as stores:
        with pytest.raises(ConnectionError):
            await stores.files.add(broken(), filename="a", purpose="batch")
        assert list((tmp_path / "content").iterdir()) == []


async def test_only_their_owner_may_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    async with opened(folder) as stores:
        file = await added(stores)
        modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
        assert modes == {0o600}
        assert stores.files.path(file.id).read_bytes() == b"data"
        assert {path.stat().st_mode & 0o777 for path in (folder, folder / "content")} == {0o700}
