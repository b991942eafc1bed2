"""An SQLite file that several gateway processes of one machine share: opened, used and closed in a thread of its own.

Only its owner may read it, and what is deleted is overwritten. Every use has a deadline: a disk that hangs holds up the
one request that needs it. Knows nothing of what is in the tables; the stores, its only users, do.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

TIMEOUT_S: Final = 5.0
"""How long a request waits for the store."""
_BUSY_S: Final = 4.0
"""Of it, how long for another process that writes."""
_RETRY_S: Final = 0.05
FILE_MODE: Final = 0o600

T = TypeVar("T")


class StoreError(Exception):
    """The store cannot be used; says which file and why."""


class StoreFile:
    """One file. Everything but the constructor may raise `StoreError`; nothing works before `open`."""

    def __init__(self, path: Path, tables: str, *, version: int, name: str) -> None:
        """`tables` is a script that makes them where they are not there; `version` tells later ones from these."""
        self._path = path
        self._tables = tables
        self._version = version
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._opened: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self.run(self._open)

    async def close(self) -> None:
        try:
            await self.run(self._close)
        finally:
            self._thread.shutdown(wait=False)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, in the file's thread, where alone `database` may be used."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            raise StoreError(f"{self._path} did not answer within {TIMEOUT_S:g} s") from None
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    @property
    def database(self) -> sqlite3.Connection:
        if self._opened is None:
            raise sqlite3.ProgrammingError("it is not open")
        return self._opened

    def _open(self) -> None:
        # The files that SQLite puts beside this one get its mode.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, FILE_MODE))
        self._path.chmod(FILE_MODE)
        database = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            self._prepare(database)
        except BaseException:
            database.close()
            raise
        self._opened = database

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Raises `sqlite3.Error`."""
        _write_ahead(database)
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA secure_delete = ON")
        [version] = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, self._version):
            raise sqlite3.DatabaseError(
                f"its tables have version {version}, and {self._version} is needed; use another file"
            )
        database.executescript(f"BEGIN IMMEDIATE; {self._tables}; PRAGMA user_version = {self._version}; COMMIT;")


def _write_ahead(database: sqlite3.Connection) -> None:
    """Readers never wait for a writer. SQLite's own timeout does not cover this: processes that start together may
    find the file locked for a moment."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
        else:
            return
