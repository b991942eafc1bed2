"""Files that clients upload and batches make: what is known of each in a database, its content in a folder beside it.

A file is there once its row is; content without a row is of a file that was deleted, or never came to its end, and is
swept away. On disk a file has its id as its name, never the client's. Bounded: what has no room is refused. Knows
neither HTTP nor what is in a file.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Final

from gateway.protocol.files import FileObject, Purpose
from gateway.store_file import FILE_MODE, StoreFile

TABLES: Final = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
"""
ORPHANED_S: Final = 3600.0
"""Content that is so old and has no row belongs to nobody: no upload takes so long."""
_NEW: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY
FOLDER_MODE: Final = 0o700
_COLUMNS: Final = "id, filename, purpose, num_bytes, created_at, expires_at"


class NoRoomError(Exception):
    """The file and all others would be more than may be kept."""


class FileInUseError(Exception):
    """A batch that has not ended needs the file."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"{batch_id} needs it")
        self.batch_id = batch_id


class FileStore:
    """Everything but the constructor may raise `StoreError`. The database is opened and closed by its owner."""

    def __init__(
        self, folder: Path, file: StoreFile, *, max_bytes: int, keep_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._file = file
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock

    def make_folder(self) -> None:
        self._folder.mkdir(mode=FOLDER_MODE, exist_ok=True)

    def path(self, file_id: str) -> Path:
        """Of the content of a file that is there."""
        return self._folder / file_id

    async def add(
        self, content: AsyncIterable[bytes], *, filename: str, purpose: Purpose, expires_after_s: float | None = None
    ) -> FileObject:
        """Keeps what comes. Raises `NoRoomError`, and whatever `content` raises."""
        file = await self.write(content, filename=filename, purpose=purpose, expires_after_s=expires_after_s)
        try:
            await self._file.run(lambda: self._insert(file))
        except BaseException:
            await self.discard(file)
            raise
        return file

    async def write(
        self, content: AsyncIterable[bytes], *, filename: str, purpose: Purpose, expires_after_s: float | None = None
    ) -> FileObject:
        """A file whose content is here, and which is there for others once somebody has inserted it."""
        file_id = f"file-{uuid.uuid4().hex}"
        num_bytes = 0
        descriptor = await self._file.beside(lambda: os.open(self.path(file_id), _NEW, FILE_MODE))
        try:
            with os.fdopen(descriptor, "wb") as opened:
                async for chunk in content:
                    num_bytes += await self._file.beside(partial(opened.write, chunk))
                await self._file.beside(lambda: _flush(opened))
        except BaseException:
            self.path(file_id).unlink(missing_ok=True)
            raise
        now = int(self._clock())
        return FileObject(
            id=file_id,
            bytes=num_bytes,
            created_at=now,
            expires_at=now + int(expires_after_s or self._keep_s),
            filename=filename,
            purpose=purpose,
        )

    async def read(self, file_id: str, start: int, num_bytes: int) -> bytes:
        """A part of a file that is there."""

        def read() -> bytes:
            with self.path(file_id).open("rb") as file:
                return os.pread(file.fileno(), num_bytes, start)

        return await self._file.beside(read)

    async def discard(self, file: FileObject) -> None:
        """Its content, where nobody has inserted it."""
        await self._file.beside(lambda: self.path(file.id).unlink(missing_ok=True))

    async def get(self, file_id: str) -> FileObject | None:
        return await self._file.read(lambda database: self._get(database, file_id))

    async def delete(self, file_id: str) -> bool:
        """Whether it was there. Raises `FileInUseError`."""
        was_there = await self._file.run(lambda: self._delete(file_id))
        if was_there:
            await self._file.beside(lambda: self.path(file_id).unlink(missing_ok=True))
        return was_there

    async def page(
        self, *, after: str | None, limit: int, newest_first: bool, purpose: str | None
    ) -> tuple[Sequence[FileObject], bool] | None:
        """Files in order, and whether there are more; None when `after` is no file."""
        return await self._file.read(
            lambda database: self._page(database, after, limit, purpose, newest_first=newest_first)
        )

    async def has_room(self) -> bool:
        """Whether there may be more of them, and more results of batches."""
        return await self._file.read(_num_bytes) < self._max_bytes

    async def sweep(self) -> None:
        """Removes what has expired, and what belongs to no file."""
        kept = await self._file.run(self._forget_expired)
        await self._file.beside(lambda: self._remove_all_but(kept))

    # In the database's thread

    def insert(self, file: FileObject) -> None:
        """Part of a transaction that somebody else began."""
        row = (file.id, file.filename, file.purpose, file.bytes, file.created_at, file.expires_at)
        self._file.database.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)  # noqa: S608

    def _insert(self, file: FileObject) -> None:
        with self._file.writing() as database:
            if _num_bytes(database) + file.bytes > self._max_bytes:
                raise NoRoomError
            self.insert(file)

    def _get(self, database: sqlite3.Connection, file_id: str) -> FileObject | None:
        select = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND expires_at > ?"  # noqa: S608
        row = database.execute(select, (file_id, self._clock())).fetchone()
        return None if row is None else _object(row)

    def _delete(self, file_id: str) -> bool:
        with self._file.writing() as database:
            user = database.execute("SELECT id FROM active_batches WHERE input_file_id = ?", (file_id,)).fetchone()
            if user is not None:
                raise FileInUseError(user[0])
            return database.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount > 0

    def _page(
        self, database: sqlite3.Connection, after: str | None, limit: int, purpose: str | None, *, newest_first: bool
    ) -> tuple[Sequence[FileObject], bool] | None:
        start = 0
        if after is not None:
            row = database.execute("SELECT number FROM files WHERE id = ?", (after,)).fetchone()
            if row is None:
                return None
            [start] = row
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        select = (
            f"SELECT {_COLUMNS} FROM files WHERE expires_at > :now AND (:after IS NULL OR number {beyond} :start)"  # noqa: S608
            f" AND (:purpose IS NULL OR purpose = :purpose) ORDER BY number {order} LIMIT :limit"
        )
        named = {"now": self._clock(), "after": after, "start": start, "purpose": purpose, "limit": limit + 1}
        rows = database.execute(select, named).fetchall()
        return [_object(row) for row in rows[:limit]], len(rows) > limit

    def _forget_expired(self) -> frozenset[str]:
        """The ids of what is left."""
        with self._file.writing() as database:
            database.execute(
                "DELETE FROM files WHERE expires_at <= ? AND id NOT IN (SELECT input_file_id FROM active_batches)",
                (self._clock(),),
            )
            return frozenset(file_id for [file_id] in database.execute("SELECT id FROM files"))

    # In any thread

    def _remove_all_but(self, kept: frozenset[str]) -> None:
        oldest = time.time() - ORPHANED_S
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps too
                if path.name not in kept and path.stat().st_mtime < oldest:
                    path.unlink()


def _num_bytes(database: sqlite3.Connection) -> int:
    """Of all files, and of what batches have for theirs so far."""
    [files] = database.execute("SELECT COALESCE(SUM(num_bytes), 0) FROM files").fetchone()
    [results] = database.execute("SELECT COALESCE(SUM(result_bytes), 0) FROM batches").fetchone()
    return int(files + results)


def _flush(file: IO[bytes]) -> None:
    """Down to the disk: a batch's lines are forgotten once its file is there."""
    file.flush()
    os.fsync(file.fileno())


def _object(row: sqlite3.Row | tuple[str, str, Purpose, int, int, int]) -> FileObject:
    file_id, filename, purpose, num_bytes, created_at, expires_at = row
    return FileObject(
        id=file_id,
        filename=filename,
        purpose=purpose,
        bytes=num_bytes,
        created_at=created_at,
        expires_at=expires_at,
    )
