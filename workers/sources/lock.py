"""One process of a machine at a time: the lock that makes a download happen once per node.

The kernel holds the lock (flock), so it ends with its process however that dies; a lock file left behind means
nothing and is never removed. Used by every source that writes into the cache.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import SourceError
from workers.sources.progress import Progress

WAIT_TIMEOUT_S = 3600.0
"""Longer than any holder works: its own steps have deadlines, and a dead one frees the lock at once."""
_RETRY_S = 0.2


@contextmanager
def file_lock(path: Path, act: str, progress: Progress, *, timeout_s: float = WAIT_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock `path` for the block; `act` says in messages what its holder does.

    Raises `SourceError` when another process still holds it after `timeout_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, act, progress, timeout_s)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, act: str, progress: Progress, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    reported = False
    while not _try_lock(descriptor):
        holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
        if time.monotonic() >= deadline:
            raise SourceError(
                f"process {holder} has been {act} for more than {timeout_s:g} s and holds {path}; "
                "end that process, then load the model again"
            )
        if not reported:
            progress(f"waiting for process {holder}, which is {act}")
            reported = True
        time.sleep(_RETRY_S)  # flock has no timed wait, and a blocking one could not be given a deadline


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
