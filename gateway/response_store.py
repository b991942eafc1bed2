"""Keeps finished responses in an SQLite file: later requests go on with them, and clients read them again.

Several gateway processes of one machine may share the file. A response is kept for a time since it was made or last
gone on with; where there is too much, those that were used longest ago go first. Everything runs in threads of the
file's own, and with a deadline. The file holds prompts and answers as they are (`store_file` says who may read it).
Knows neither HTTP nor what is in a response.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gateway.store_file import StoreFile

_MAX_REMOVALS: Final = 100
_MAX_REMOVED_BYTES: Final = 64 * 1024 * 1024
"""Per response that comes: neither a bound that was lowered nor many that end at once cost a request much, for what is
removed is overwritten."""
_VERSION: Final = 1
"""Of the tables."""

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    previous_id TEXT,
    num_bytes INTEGER NOT NULL,
    used_at REAL NOT NULL,
    body BLOB NOT NULL,
    input_items BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON responses (used_at);
CREATE TABLE IF NOT EXISTS size (num_bytes INTEGER NOT NULL);
INSERT INTO size SELECT 0 WHERE NOT EXISTS (SELECT * FROM size);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON responses
    BEGIN UPDATE size SET num_bytes = num_bytes + new.num_bytes; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON responses
    BEGIN UPDATE size SET num_bytes = num_bytes - old.num_bytes; END;
"""
_CHAIN: Final = """
WITH RECURSIVE chain (id, previous_id, num_bytes, distance) AS (
    SELECT id, previous_id, num_bytes, 0 FROM responses WHERE id = :id AND used_at >= :oldest
    UNION ALL
    SELECT earlier.id, earlier.previous_id, earlier.num_bytes, chain.distance + 1
    FROM responses AS earlier JOIN chain ON earlier.id = chain.previous_id WHERE earlier.used_at >= :oldest
)
SELECT id, previous_id, num_bytes FROM chain ORDER BY distance DESC
"""
"""A response after all that came before it. None comes before itself: an id is made after those it can refer to."""


class ConversationTooLongError(Exception):
    """What is to be read is more than was asked for."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"a conversation of {num_bytes} bytes")
        self.num_bytes = num_bytes


class KeptResponse(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    previous_id: str | None
    body: bytes
    """The response as it was sent, in JSON."""
    input_items: bytes
    """What was new in its input, as a JSON list."""

    @property
    def num_bytes(self) -> int:
        return len(self.body) + len(self.input_items)


class ResponseStore:
    """One file. Everything but the constructor may raise `StoreError`; nothing works before `open`."""

    def __init__(self, path: Path, *, max_bytes: int, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the same in all processes that share the file."""
        self._file = StoreFile(path, _TABLES, version=_VERSION, name="response-store")
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock

    async def open(self) -> None:
        await self._file.open()

    async def close(self) -> None:
        await self._file.close()

    async def put(self, response: KeptResponse) -> bool:
        """Whether it is kept: one that is larger than the whole store may be is not."""
        return await self._file.run(lambda: self._put(response))

    async def get(self, response_id: str) -> KeptResponse | None:
        return await self._file.read(lambda database: self._get(database, response_id))

    async def get_all(self, response_ids: Collection[str], *, max_bytes: int) -> Sequence[KeptResponse]:
        """Those that are kept. Raises `ConversationTooLongError`."""
        return await self._file.read(lambda database: self._get_all(database, response_ids, max_bytes))

    async def delete(self, response_id: str) -> bool:
        """Whether it was there."""
        return await self._file.run(lambda: self._delete(response_id))

    async def conversation(self, response_id: str, *, max_bytes: int | None = None) -> Sequence[KeptResponse]:
        """The response after all that came before it; empty when one of them is not kept, or not any more.

        Raises `ConversationTooLongError`.
        """
        return await self._file.read(lambda database: self._conversation(database, response_id, max_bytes))

    async def renew(self, response_ids: Collection[str]) -> None:
        """They are kept as long again from now."""
        await self._file.run(lambda: self._renew(response_ids))

    # In the file's own threads

    @property
    def _oldest(self) -> float:
        return self._clock() - self._keep_s

    def _put(self, response: KeptResponse) -> bool:
        with self._file.writing() as database:
            fits = response.num_bytes <= self._max_bytes
            if fits:
                row = (response.id, response.previous_id, response.num_bytes, self._clock())
                database.execute(
                    "INSERT INTO responses (id, previous_id, num_bytes, used_at, body, input_items)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (*row, response.body, response.input_items),
                )
            self._make_room(database)
        return fits

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Removes what is over its time and what is too much, but only so many."""
        num_removed = removed_bytes = 0
        while num_removed < _MAX_REMOVALS and removed_bytes < _MAX_REMOVED_BYTES:
            longest_ago = "SELECT id, num_bytes, used_at FROM responses ORDER BY used_at LIMIT 1"
            response_id, num_bytes, used_at = database.execute(longest_ago).fetchone() or (None, 0, math.inf)
            [total_bytes] = database.execute("SELECT num_bytes FROM size").fetchone()
            if used_at >= self._oldest and total_bytes <= self._max_bytes:
                return
            database.execute("DELETE FROM responses WHERE id = ?", (response_id,))
            num_removed += 1
            removed_bytes += num_bytes

    def _get(self, database: sqlite3.Connection, response_id: str) -> KeptResponse | None:
        select = "SELECT id, previous_id, body, input_items FROM responses WHERE id = ? AND used_at >= ?"
        row = database.execute(select, (response_id, self._oldest)).fetchone()
        return None if row is None else _kept(row)

    def _get_all(
        self, database: sqlite3.Connection, response_ids: Collection[str], max_bytes: int
    ) -> Sequence[KeptResponse]:
        found = []
        num_bytes = 0
        for response_id in response_ids:
            select = "SELECT num_bytes FROM responses WHERE id = ?"
            num_bytes += (database.execute(select, (response_id,)).fetchone() or (0,))[0]
            if num_bytes > max_bytes:
                raise ConversationTooLongError(num_bytes)
            found.append(self._get(database, response_id))
        return [one for one in found if one is not None]

    def _delete(self, response_id: str) -> bool:
        with self._file.writing() as database:
            deleted = database.execute(
                "DELETE FROM responses WHERE id = ? AND used_at >= ?", (response_id, self._oldest)
            )
        return deleted.rowcount > 0

    def _conversation(
        self, database: sqlite3.Connection, response_id: str, max_bytes: int | None
    ) -> Sequence[KeptResponse]:
        with database:
            database.execute("BEGIN")  # all of it at one moment
            chain = database.execute(_CHAIN, {"id": response_id, "oldest": self._oldest}).fetchall()
            if not chain or chain[0][1] is not None:
                return ()
            num_bytes = sum(size for _, _, size in chain)
            if max_bytes is not None and num_bytes > max_bytes:
                raise ConversationTooLongError(num_bytes)
            select = "SELECT id, previous_id, body, input_items FROM responses WHERE id = ?"
            return [_kept(database.execute(select, (one,)).fetchone()) for one, _, _ in chain]

    def _renew(self, response_ids: Collection[str]) -> None:
        with self._file.writing() as database:
            renewed = [(self._clock(), one) for one in response_ids]
            database.executemany("UPDATE responses SET used_at = ? WHERE id = ?", renewed)


def _kept(row: tuple[str, str | None, bytes, bytes]) -> KeptResponse:
    response_id, previous_id, body, input_items = row
    return KeptResponse(id=response_id, previous_id=previous_id, body=body, input_items=input_items)
