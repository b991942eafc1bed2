"""Downloads objects in ranges, several at a time, and goes on where an interrupted download ended.

    <scratch>/files/<name>       content, with holes where ranges are missing
    <scratch>/journals/<name>    which version it is, and which of its ranges are on the disk

A range counts only when it is on the disk; a file whose object changed since starts over. Knows neither models nor
which store it reads. Called by `mirror`, which holds the lock.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from workers.sources import checksums
from workers.sources.cache import require_free_space
from workers.sources.object_store import NUM_CONNECTIONS, Checksum, ObjectStore, RemoteFile, TransientSourceError
from workers.sources.progress import ByteProgress, Progress
from workers.sources.traffic import FETCHED

CHUNK_BYTES = 16 << 20
"""What an interruption costs at most, once per connection."""
NUM_ATTEMPTS = 5
"""Attempts in a row that bring no byte before a range gives up."""
FIRST_RETRY_S = 0.5
_DONE = b"\x01"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to be: `name` relative to the folder, and its checksum where the mirror publishes one."""

    name: str
    remote: RemoteFile
    checksum: Checksum | None = None


def download(store: ObjectStore, wanted: list[Wanted], scratch: Path, progress: Progress) -> Path:
    """The folder, inside `scratch`, that holds exactly the wanted files, complete and verified. Blocks.

    Raises `SourceError`; what is on the disk by then is used by the next call.
    """
    files, journals = scratch / "files", scratch / "journals"
    for folder in (files, journals):
        _remove_others(folder, {one.name for one in wanted})
    with ExitStack() as stack:
        opened = [
            stack.enter_context(PartialFile(files / one.name, journals / one.name, one.remote, CHUNK_BYTES))
            for one in wanted
        ]
        _fetch(store, opened, files, progress)
    _verify(store, wanted, files, journals, progress)
    return files


def _remove_others(folder: Path, names: set[str]) -> None:
    """Leave only these files, and no folder where one of them is to be, or the other way round."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in names or path.is_symlink():
            path.unlink()


class PartialFile:
    """A file of which some chunks are on the disk; the journal says of which version, and which."""

    def __init__(self, path: Path, journal: Path, remote: RemoteFile, chunk_bytes: int) -> None:
        self.remote = remote
        self._path = path
        self._journal_path = journal
        self._chunk_bytes = chunk_bytes
        self._num_chunks = -(-remote.size_bytes // chunk_bytes)
        self._header = b""
        self._done = bytearray()
        self._file = self._journal = -1

    def __enter__(self) -> Self:
        for path in (self._path, self._journal_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        facts = [self.remote.uri, self.remote.version, self.remote.size_bytes, self._chunk_bytes]
        self._header = json.dumps(facts).encode() + b"\n"
        self._done = self._read_journal()
        if not self._done:
            self._path.unlink(missing_ok=True)
            self._done = bytearray(self._num_chunks)
            self._journal_path.write_bytes(self._header + self._done)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.truncate(self._file, self.remote.size_bytes)
        self._journal = os.open(self._journal_path, os.O_RDWR | os.O_CLOEXEC)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._journal)

    def _read_journal(self) -> bytearray:
        """The flag of every chunk; empty when nothing that is on the disk can be used."""
        if not (self._path.is_file() and self._journal_path.is_file()):
            return bytearray()
        content = self._journal_path.read_bytes()
        flags = content.removeprefix(self._header)
        is_usable = content.startswith(self._header) and len(flags) == self._num_chunks
        return bytearray(flags) if is_usable else bytearray()

    @property
    def missing(self) -> Iterator[Chunk]:
        for index, is_done in enumerate(self._done):
            if not is_done:
                start = index * self._chunk_bytes
                yield Chunk(self, index, start, min(start + self._chunk_bytes, self.remote.size_bytes))

    def write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            num_written = os.pwrite(self._file, view, offset)
            view, offset = view[num_written:], offset + num_written

    def finish(self, index: int) -> None:
        """The chunk is written; remembered only once it would survive the machine."""
        os.fdatasync(self._file)
        os.pwrite(self._journal, _DONE, len(self._header) + index)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `start` to `stop` of a file, to be fetched by one request."""

    file: PartialFile
    index: int
    start: int
    stop: int


class _StoppedError(Exception):
    """Another chunk failed, so this one is not needed."""


class _Download:
    """What the threads of one download share: how far it is, and whether it goes on."""

    def __init__(self, store: ObjectStore, counter: ByteProgress, num_bytes: int) -> None:
        self._store = store
        self._counter = counter
        self._num_bytes = num_bytes
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def fetch(self, chunk: Chunk) -> None:
        """Goes on behind the last byte that came when the connection breaks."""
        start, failures = chunk.start, 0
        while start < chunk.stop:
            before = start
            try:
                start = self._fetch_some(chunk, start)
            except _BrokenError as broken:
                start = broken.reached
                failures = failures + 1 if start == before else 1
                if failures >= NUM_ATTEMPTS:
                    raise broken.reason from None
                self._pause(failures)
        chunk.file.finish(chunk.index)

    def _fetch_some(self, chunk: Chunk, start: int) -> int:
        """Fetch the rest of the chunk from `start` on; its end. Raises `_BrokenError` that says how far it came."""
        offset = start

        def write(data: bytes) -> None:
            nonlocal offset
            if self.stop.is_set():
                raise _StoppedError
            data = data[: chunk.stop - offset]
            chunk.file.write(data, offset)
            offset += len(data)
            self._count(len(data))

        try:
            self._store.read_range(chunk.file.remote, start, chunk.stop, write)
        except TransientSourceError as error:
            raise _BrokenError(offset, error) from error
        if offset < chunk.stop:
            reason = TransientSourceError(f"{chunk.file.remote.uri} ends before its size; load the model again")
            raise _BrokenError(offset, reason)
        return offset

    def _count(self, num_bytes: int) -> None:
        FETCHED.add(num_bytes)
        with self._lock:
            self._num_bytes += num_bytes
            self._counter.reached(self._num_bytes)

    def _pause(self, num_failures: int) -> None:
        delay_s = FIRST_RETRY_S * 2 ** (num_failures - 1) * random.uniform(0.5, 1)  # noqa: S311  no secret
        if self.stop.wait(delay_s):
            raise _StoppedError


class _BrokenError(Exception):
    """The answer ended early, at the byte `reached`."""

    def __init__(self, reached: int, reason: TransientSourceError) -> None:
        super().__init__(str(reason))
        self.reached = reached
        self.reason = reason


def _fetch(store: ObjectStore, opened: list[PartialFile], folder: Path, progress: Progress) -> None:
    chunks = [chunk for file in opened for chunk in file.missing]
    total_bytes = sum(file.remote.size_bytes for file in opened)
    missing_bytes = sum(chunk.stop - chunk.start for chunk in chunks)
    if not chunks:
        return
    require_free_space(folder, missing_bytes, "fetching weights")
    present_bytes = total_bytes - missing_bytes
    if present_bytes:
        progress(f"fetching weights: {present_bytes} of {total_bytes} bytes are here already")
    counter = ByteProgress(progress, "fetching weights", total_bytes, first_byte=present_bytes)
    shared = _Download(store, counter, present_bytes)
    _in_parallel([partial(shared.fetch, chunk) for chunk in chunks], shared.stop)


def _in_parallel(calls: list[Callable[[], None]], stop: threading.Event) -> None:
    """Run all calls, a few at a time; when one fails, sets `stop`, ends the others and raises its error."""
    with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="fetch") as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    errors = [error for future in done if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, _StoppedError)), errors[0])


def _verify(store: ObjectStore, wanted: list[Wanted], files: Path, journals: Path, progress: Progress) -> None:
    """Every file against its checksum; a file that fails is removed, so that the next attempt fetches it anew."""
    progress(f"verifying weights: {len(wanted)} files")

    def verify(one: Wanted) -> None:
        expected = one.checksum or store.checksum_of(one.remote)
        if expected is None:
            return
        try:
            checksums.verify(files / one.name, expected, one.remote.uri)
        except Exception:
            (journals / one.name).unlink(missing_ok=True)
            (files / one.name).unlink(missing_ok=True)
            raise

    _in_parallel([partial(verify, one) for one in wanted], threading.Event())
