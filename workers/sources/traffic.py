"""How many bytes of weights this process has fetched from elsewhere, for its report and the metrics made of it.

Every source that fetches adds to the one counter; the worker reads it. Nothing is subtracted, ever.
"""

from __future__ import annotations

import threading


class ByteCounter:
    """A number that only grows, whichever thread adds to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._num_bytes += num_bytes

    @property
    def num_bytes(self) -> int:
        return self._num_bytes


FETCHED = ByteCounter()
