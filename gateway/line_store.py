"""The lines of batches and what has come of each, in the database of the batches.

A line has one result at most, and whoever writes needs the lease of its batch, which counts what was written. The lines
of a batch that is over are removed little by little: there may be many, and what waits for the database waits for each
removal. Knows neither HTTP nor what is in a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from gateway.batch_store import BatchStore
from gateway.protocol.batches import BatchUsage
from gateway.store_file import StoreFile

TABLES: Final = """
CREATE TABLE IF NOT EXISTS lines (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    model TEXT NOT NULL,
    start INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    is_success INTEGER,
    result BLOB,
    PRIMARY KEY (batch_id, number),
    UNIQUE (batch_id, custom_id)
) WITHOUT ROWID;
"""
MAX_REMOVED: Final = 1000
MAX_REMOVED_BYTES: Final = 32 * 1024 * 1024
"""Of results, in one change; a single line may have more."""
_REMOVE: Final = """
DELETE FROM lines WHERE batch_id = :batch_id AND number IN (
    SELECT number FROM (
        SELECT number, num_bytes, SUM(num_bytes) OVER (ORDER BY number) AS total FROM (
            SELECT number, COALESCE(LENGTH(result), 0) AS num_bytes
            FROM lines WHERE batch_id = :batch_id ORDER BY number LIMIT :max_lines
        )
    ) WHERE total - num_bytes < :max_bytes
)
"""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a batch, and where it stands in the input file."""

    number: int
    """From 1, blank lines counted."""
    custom_id: str
    model: str
    start: int
    num_bytes: int


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a line."""

    number: int
    is_success: bool
    text: bytes
    """Its line of the output or of the error file."""
    usage: BatchUsage = BatchUsage()


class LineStore:
    """Everything but the constructor may raise `StoreError`; what takes an `owner`, `LeaseLostError`.

    The database is opened and closed by its owner.
    """

    def __init__(self, file: StoreFile, batches: BatchStore) -> None:
        self._file = file
        self._batches = batches

    async def put(self, batch_id: str, owner: str, lines: Sequence[Line]) -> None:
        """More of them."""
        await self._file.run(lambda: self._put(batch_id, owner, lines))

    async def clear(self, batch_id: str, owner: str) -> None:
        """Removes those of a validation that did not come to its end."""
        while await self._file.run(lambda: self._clear_some(batch_id, owner)):
            pass

    async def open_models(self, batch_id: str) -> Sequence[str]:
        """The models that lines without a result are about."""
        select = "SELECT DISTINCT model FROM lines WHERE batch_id = ? AND result IS NULL"
        rows = await self._file.read(lambda database: database.execute(select, (batch_id,)).fetchall())
        return [model for [model] in rows]

    async def open_lines(self, batch_id: str, model: str | None, *, after: int, limit: int) -> Sequence[Line]:
        """Lines without a result, about this model or any, in order."""
        select = (
            "SELECT number, custom_id, model, start, num_bytes FROM lines WHERE batch_id = :batch_id AND result IS NULL"
            " AND number > :after AND (:model IS NULL OR model = :model) ORDER BY number LIMIT :limit"
        )
        values = {"batch_id": batch_id, "model": model, "after": after, "limit": limit}
        rows = await self._file.read(lambda database: database.execute(select, values).fetchall())
        return [
            Line(number=number, custom_id=custom_id, model=model, start=start, num_bytes=num_bytes)
            for number, custom_id, model, start, num_bytes in rows
        ]

    async def record(self, batch_id: str, owner: str, result: LineResult) -> None:
        """The line's result, if it has none yet."""
        await self._file.run(lambda: self._record(batch_id, owner, result))

    async def results(self, batch_id: str, *, is_success: bool, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
        """Numbers and texts of lines that ended so, in order."""
        select = (
            "SELECT number, result FROM lines WHERE batch_id = ? AND number > ? AND is_success = ?"
            " ORDER BY number LIMIT ?"
        )
        values = (batch_id, after, is_success, limit)
        return await self._file.read(lambda database: database.execute(select, values).fetchall())

    async def sweep(self) -> None:
        """Removes the lines of batches that are over."""
        while await self._file.run(self._remove_some):
            pass

    # In the database's thread

    def _put(self, batch_id: str, owner: str, lines: Sequence[Line]) -> None:
        rows = [(batch_id, one.number, one.custom_id, one.model, one.start, one.num_bytes) for one in lines]
        with self._file.writing() as database:
            self._batches.check_owner(batch_id, owner)
            database.executemany(
                "INSERT INTO lines (batch_id, number, custom_id, model, start, num_bytes) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._batches.add_lines(batch_id, len(rows))

    def _clear_some(self, batch_id: str, owner: str) -> int:
        with self._file.writing():
            self._batches.check_owner(batch_id, owner)
            num_removed = self._remove(batch_id)
            self._batches.add_lines(batch_id, -num_removed)
        return num_removed

    def _record(self, batch_id: str, owner: str, result: LineResult) -> None:
        with self._file.writing() as database:
            self._batches.check_owner(batch_id, owner)
            done = database.execute(
                "UPDATE lines SET is_success = ?, result = ? WHERE batch_id = ? AND number = ? AND result IS NULL",
                (result.is_success, result.text, batch_id, result.number),
            )
            if done.rowcount:
                self._batches.add_result(batch_id, result.usage, len(result.text), is_success=result.is_success)

    def _remove_some(self) -> int:
        with self._file.writing():
            batch_id = self._batches.over_with_lines()
            return 0 if batch_id is None else self._remove(batch_id)

    def _remove(self, batch_id: str) -> int:
        values = {"batch_id": batch_id, "max_lines": MAX_REMOVED, "max_bytes": MAX_REMOVED_BYTES}
        return self._file.database.execute(_REMOVE, values).rowcount
