"""Batches, who runs them and what they have come to, in the database of the files.

Several gateway processes share it. A batch that is not over is run by whoever has its lease; everything that a run
writes needs that lease, so one that lost it (it hung, or its disk did) changes nothing any more. `line_store` keeps the
lines. Knows neither HTTP nor what a batch asks for.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.batch_states import ACTIVE, changed
from gateway.file_store import FileStore
from gateway.protocol.batches import (
    Batch,
    BatchErrors,
    BatchStatus,
    BatchUsage,
    InputDetails,
    OutputDetails,
    RequestCounts,
)
from gateway.protocol.files import FileObject
from gateway.protocol.responses import encode
from gateway.store_file import StoreFile

_ACTIVE: Final = ", ".join(f"'{status.value}'" for status in ACTIVE)
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    status TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    body BLOB NOT NULL,
    output_expires_s INTEGER,
    ended_at REAL,
    owner TEXT,
    leased_until REAL NOT NULL DEFAULT 0,
    num_lines INTEGER NOT NULL DEFAULT 0,
    num_completed INTEGER NOT NULL DEFAULT 0,
    num_failed INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    result_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status);
"""
TABLES: Final = (
    f"{_TABLES} CREATE VIEW IF NOT EXISTS active_batches AS SELECT * FROM batches WHERE status IN ({_ACTIVE});"  # noqa: S608
)
MAX_ACTIVE: Final = 1000
"""Batches that are not over."""
_COLUMNS: Final = (
    "body, num_lines, num_completed, num_failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens"
)


_HAS_LINES: Final = "EXISTS (SELECT 1 FROM lines WHERE batch_id = batches.id)"


class TooManyBatchesError(Exception):
    """No more of them are taken before some are over."""


class LeaseLostError(Exception):
    """Somebody else runs the batch, or nobody does any more: it is over or gone."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch ends."""

    status: BatchStatus
    output_file: FileObject | None = None
    error_file: FileObject | None = None
    num_unanswered: int = 0
    """Lines that were not sent, which failed by that."""


class BatchStore:
    """Everything but the constructor may raise `StoreError`; what takes an `owner`, `LeaseLostError`.

    The database is opened and closed by its owner.
    """

    def __init__(
        self, file: StoreFile, files: FileStore, *, keep_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        """`keep_s`: how long a batch is told of after its end."""
        self._file = file
        self._files = files
        self._keep_s = keep_s
        self._clock = clock

    # For clients

    async def create(self, batch: Batch, *, output_expires_s: int | None) -> bool:
        """Whether its input file is there. Raises `TooManyBatchesError`."""
        return await self._file.run(lambda: self._create(batch, output_expires_s))

    async def get(self, batch_id: str) -> Batch | None:
        return await self._file.read(lambda database: _get(database, batch_id))

    async def page(self, *, after: str | None, limit: int) -> tuple[Sequence[Batch], bool] | None:
        """The newest first, and whether there are more; None when `after` is no batch."""
        return await self._file.read(lambda database: _page(database, after, limit))

    async def cancel(self, batch_id: str) -> Batch | None:
        """The batch, if there is one. Raises `ForbiddenChangeError`."""
        return await self._file.run(lambda: self._cancel(batch_id))

    # For whoever runs them

    async def claim(self, owner: str, *, lease_s: float, limit: int) -> Sequence[Batch]:
        """Batches that nobody runs, the oldest first; from now on `owner` does."""
        return await self._file.run(lambda: self._claim(owner, lease_s, limit))

    async def renew(self, owner: str, *, lease_s: float) -> Mapping[str, BatchStatus]:
        """The states of all that `owner` runs, which goes on to."""
        return await self._file.run(lambda: self._renew(owner, lease_s))

    async def release(self, batch_id: str, owner: str) -> None:
        """Anybody may go on with it."""
        release = "UPDATE batches SET owner = NULL, leased_until = 0 WHERE id = ? AND owner = ?"
        await self._file.run(lambda: self._file.database.execute(release, (batch_id, owner)))

    async def owned(self, batch_id: str, owner: str) -> Batch:
        """The batch as it is now."""
        return await self._file.run(lambda: self._owned(batch_id, owner))

    async def change(self, batch_id: str, owner: str, status: BatchStatus, **fields: Any) -> Batch:
        """The batch in its next state. Raises `ForbiddenChangeError`."""
        return await self._file.run(lambda: self._change(batch_id, owner, status, fields))

    async def fail(self, batch_id: str, owner: str, errors: BatchErrors) -> None:
        """The input is not what it should be."""
        await self._file.run(lambda: self._fail(batch_id, owner, errors))

    async def output_expires_s(self, batch_id: str) -> int | None:
        select = "SELECT output_expires_s FROM batches WHERE id = ?"
        row = await self._file.read(lambda database: database.execute(select, (batch_id,)).fetchone())
        return None if row is None else row[0]

    async def finish(self, batch_id: str, owner: str, outcome: Outcome) -> None:
        """The batch is over; its files and its end are there together."""
        await self._file.run(lambda: self._finish(batch_id, owner, outcome))

    async def num_by_status(self) -> Mapping[BatchStatus, int]:
        select = "SELECT status, COUNT(*) FROM batches GROUP BY status"
        rows = await self._file.read(lambda database: database.execute(select).fetchall())
        return dict.fromkeys(BatchStatus, 0) | {BatchStatus(status): count for status, count in rows}

    async def sweep(self) -> None:
        """Forgets the batches that ended long ago, once their lines are gone."""
        delete = f"DELETE FROM batches WHERE ended_at <= ? AND NOT {_HAS_LINES}"  # noqa: S608
        await self._file.run(lambda: self._file.database.execute(delete, (self._clock() - self._keep_s,)))

    # In the database's thread

    def _create(self, batch: Batch, output_expires_s: int | None) -> bool:
        with self._file.writing() as database:
            [num_active] = database.execute("SELECT COUNT(*) FROM active_batches").fetchone()
            if num_active >= MAX_ACTIVE:
                raise TooManyBatchesError
            select = "SELECT 1 FROM files WHERE id = ? AND purpose = 'batch' AND expires_at > ?"
            if database.execute(select, (batch.input_file_id, self._clock())).fetchone() is None:
                return False
            database.execute(
                "INSERT INTO batches (id, status, input_file_id, body, output_expires_s) VALUES (?, ?, ?, ?, ?)",
                (batch.id, batch.status.value, batch.input_file_id, encode(batch), output_expires_s),
            )
        return True

    def _cancel(self, batch_id: str) -> Batch | None:
        with self._file.writing() as database:
            batch = _get(database, batch_id)
            if batch is None or batch.status is BatchStatus.CANCELLING:
                return batch
            return self._put(changed(batch, BatchStatus.CANCELLING, self._clock()))

    def _claim(self, owner: str, lease_s: float, limit: int) -> Sequence[Batch]:
        now = self._clock()
        with self._file.writing() as database:
            rows = database.execute(
                f"SELECT {_COLUMNS} FROM active_batches WHERE leased_until <= ? ORDER BY number LIMIT ?",  # noqa: S608
                (now, limit),
            ).fetchall()
            batches = [_batch(row) for row in rows]
            leases = [(owner, now + lease_s, batch.id) for batch in batches]
            database.executemany("UPDATE batches SET owner = ?, leased_until = ? WHERE id = ?", leases)
        return batches

    def _renew(self, owner: str, lease_s: float) -> Mapping[str, BatchStatus]:
        with self._file.writing() as database:
            until = self._clock() + lease_s
            database.execute("UPDATE batches SET leased_until = ? WHERE owner = ?", (until, owner))
            rows = database.execute("SELECT id, status FROM active_batches WHERE owner = ?", (owner,)).fetchall()
        return {batch_id: BatchStatus(status) for batch_id, status in rows}

    def _owned(self, batch_id: str, owner: str) -> Batch:
        select = f"SELECT {_COLUMNS} FROM active_batches WHERE id = ? AND owner = ?"  # noqa: S608
        row = self._file.database.execute(select, (batch_id, owner)).fetchone()
        if row is None:
            raise LeaseLostError(batch_id)
        return _batch(row)

    def _put(self, batch: Batch) -> Batch:
        self._file.database.execute(
            "UPDATE batches SET status = ?, body = ? WHERE id = ?", (batch.status.value, encode(batch), batch.id)
        )
        return batch

    def _change(self, batch_id: str, owner: str, status: BatchStatus, fields: Mapping[str, Any]) -> Batch:
        with self._file.writing():
            return self._put(changed(self._owned(batch_id, owner), status, self._clock(), **fields))

    def _fail(self, batch_id: str, owner: str, errors: BatchErrors) -> None:
        with self._file.writing():
            self._put(changed(self._owned(batch_id, owner), BatchStatus.FAILED, self._clock(), errors=errors))
            self._end(batch_id)

    def _finish(self, batch_id: str, owner: str, outcome: Outcome) -> None:
        output, errors = outcome.output_file, outcome.error_file
        with self._file.writing() as database:
            batch = changed(
                self._owned(batch_id, owner),
                outcome.status,
                self._clock(),
                output_file_id=None if output is None else output.id,
                error_file_id=None if errors is None else errors.id,
            )
            for file in (output, errors):
                if file is not None:
                    self._files.insert(file)
            self._put(batch)
            database.execute(
                "UPDATE batches SET num_failed = num_failed + ? WHERE id = ?", (outcome.num_unanswered, batch_id)
            )
            self._end(batch_id)

    def _end(self, batch_id: str) -> None:
        self._file.database.execute(
            "UPDATE batches SET owner = NULL, result_bytes = 0, ended_at = ? WHERE id = ?", (self._clock(), batch_id)
        )

    # In the database's thread too, as parts of changes to the lines

    def check_owner(self, batch_id: str, owner: str) -> None:
        self._owned(batch_id, owner)

    def add_lines(self, batch_id: str, num_lines: int) -> None:
        self._file.database.execute("UPDATE batches SET num_lines = num_lines + ? WHERE id = ?", (num_lines, batch_id))

    def add_result(self, batch_id: str, usage: BatchUsage, num_bytes: int, *, is_success: bool) -> None:
        self._file.database.execute(
            "UPDATE batches SET num_completed = num_completed + ?, num_failed = num_failed + ?,"
            " input_tokens = input_tokens + ?, cached_tokens = cached_tokens + ?,"
            " output_tokens = output_tokens + ?, reasoning_tokens = reasoning_tokens + ?,"
            " result_bytes = result_bytes + ? WHERE id = ?",
            (
                is_success,
                not is_success,
                usage.input_tokens,
                usage.input_tokens_details.cached_tokens,
                usage.output_tokens,
                usage.output_tokens_details.reasoning_tokens,
                num_bytes,
                batch_id,
            ),
        )

    def over_with_lines(self) -> str | None:
        """A batch that is over and still has lines."""
        select = f"SELECT id FROM batches WHERE ended_at IS NOT NULL AND {_HAS_LINES} LIMIT 1"  # noqa: S608
        row = self._file.database.execute(select).fetchone()
        return None if row is None else str(row[0])


def _get(database: sqlite3.Connection, batch_id: str) -> Batch | None:
    select = f"SELECT {_COLUMNS} FROM batches WHERE id = ?"  # noqa: S608
    row = database.execute(select, (batch_id,)).fetchone()
    return None if row is None else _batch(row)


def _page(database: sqlite3.Connection, after: str | None, limit: int) -> tuple[Sequence[Batch], bool] | None:
    before = None
    if after is not None:
        row = database.execute("SELECT number FROM batches WHERE id = ?", (after,)).fetchone()
        if row is None:
            return None
        [before] = row
    select = (
        f"SELECT {_COLUMNS} FROM batches WHERE :before IS NULL OR number < :before"  # noqa: S608
        " ORDER BY number DESC LIMIT :limit"
    )
    rows = database.execute(select, {"before": before, "limit": limit + 1}).fetchall()
    return [_batch(row) for row in rows[:limit]], len(rows) > limit


def _batch(row: tuple[bytes, int, int, int, int, int, int, int]) -> Batch:
    body, num_lines, num_completed, num_failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens = row
    return msgspec.structs.replace(
        _decode(body),
        request_counts=RequestCounts(total=num_lines, completed=num_completed, failed=num_failed),
        usage=BatchUsage(
            input_tokens=input_tokens,
            input_tokens_details=InputDetails(cached_tokens=cached_tokens),
            output_tokens=output_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=reasoning_tokens),
            total_tokens=input_tokens + output_tokens,
        ),
    )


_decode = msgspec.json.Decoder(Batch).decode
