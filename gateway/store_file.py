"""An SQLite file that several gateway processes of one machine share: opened, used and closed in threads of its own.

Only its owner may read it, and what is deleted is overwritten. Every use has a deadline: a disk that hangs holds up the
one request that needs it, and a change that nobody waits for any more is not made. Reading has a connection and a
thread to itself, so that it never waits for a writer. Knows nothing of what is in the tables; the stores, its only
users, do.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
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
        self._use = _Use()
        """The one in the thread now."""
        self._reading_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-reading")
        self._opened_to_read: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self.run(self._open)
        await self._within_deadline(self._reading_thread, self._open_to_read, _Use())

    async def close(self) -> None:
        """Reading ends first: the last connection to the file leaves nothing beside it."""
        try:
            await self._within_deadline(self._reading_thread, self._close_reading, _Use())
        finally:
            self._reading_thread.shutdown(wait=False)
            try:
                await self.run(self._close)
            finally:
                self._thread.shutdown(wait=False)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, in the file's thread, where alone `database` and `writing` may be used.

        Where it comes too late, nothing was changed by `writing`.
        """
        use = _Use()

        def used() -> T:
            self._use = use
            return work()

        return await self._within_deadline(self._thread, used, use)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `work`, which changes nothing, whatever is being written meanwhile."""
        return await self._within_deadline(self._reading_thread, lambda: work(_open(self._opened_to_read)), _Use())

    async def _within_deadline(self, thread: ThreadPoolExecutor, work: Callable[[], T], use: _Use) -> T:
        doing = asyncio.get_running_loop().run_in_executor(thread, work)
        try:
            await asyncio.wait((doing,), timeout=TIMEOUT_S)
            if not doing.done() and not use.give_up():
                # It is being made final, which nobody can call back: what came of it is worth as long a wait again.
                await asyncio.wait((doing,), timeout=TIMEOUT_S)
            if not doing.done():
                raise StoreError(f"{self._path} did not answer within {TIMEOUT_S:g} s")
            return doing.result()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error
        finally:
            doing.cancel()  # what has not begun never does

    async def beside(self, work: Callable[[], T]) -> T:
        """The result of `work` with the files beside this one, in another thread, however long it takes."""
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StoreError(str(error)) from error

    @property
    def database(self) -> sqlite3.Connection:
        return _open(self._opened)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The database, for changes that happen together or not at all."""
        with self.database as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            if not self._use.make_final():
                raise StoreError(f"{self._path}: nobody waits for the change any more")

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

    def _open_to_read(self) -> None:
        self._opened_to_read = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        self._opened_to_read.execute("PRAGMA query_only = ON")

    def _close_reading(self) -> None:
        if self._opened_to_read is not None:
            self._opened_to_read.close()
            self._opened_to_read = None

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


class _Use:
    """One use of the file, between its thread and who waits for it: whichever says so first makes it final or gives it
    up."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_final = False
        self._is_given_up = False

    def make_final(self) -> bool:
        """Before a change is made; whether it may be."""
        with self._lock:
            self._is_final = not self._is_given_up
            return self._is_final

    def give_up(self) -> bool:
        """Whether that came in time."""
        with self._lock:
            self._is_given_up = not self._is_final
            return self._is_given_up


def _open(database: sqlite3.Connection | None) -> sqlite3.Connection:
    if database is None:
        raise sqlite3.ProgrammingError("it is not open")
    return database


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
