"""How slow work says where it is. The worker turns the lines into its replica's detail, people read them there.

Knows nothing of what is fetched. Every source and every initializer reports through it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]
"""Called with one line for people, such as `fetching weights: 43 of 98 MB`; cheap enough to call often."""

MEGABYTE = 1_000_000
_REPORT_EVERY_S = 0.2


class ByteProgress:
    """Reports `<act>: 43 of 98 MB`, a few times a second however often it is told, and once at the end."""

    def __init__(self, progress: Progress, act: str, total_bytes: int, *, first_byte: int | None = None) -> None:
        """`first_byte`: how many bytes were there before, which makes lines end in the rate since, `, 31 MB/s`."""
        self._progress = progress
        self._act = act
        self.total_bytes = total_bytes
        self._first_byte = first_byte
        self._started_at = self._next_report_at = time.monotonic()

    def reached(self, num_bytes: int) -> None:
        """`num_bytes` of the total are done."""
        now = time.monotonic()
        if now < self._next_report_at and num_bytes < self.total_bytes:
            return
        self._next_report_at = now + _REPORT_EVERY_S
        done, total = round(num_bytes / MEGABYTE), round(self.total_bytes / MEGABYTE)
        self._progress(f"{self._act}: {done} of {total} MB{self._rate(num_bytes, now - self._started_at)}")

    def _rate(self, num_bytes: int, elapsed_s: float) -> str:
        if self._first_byte is None or elapsed_s <= 0:
            return ""
        return f", {round((num_bytes - self._first_byte) / MEGABYTE / elapsed_s)} MB/s"
