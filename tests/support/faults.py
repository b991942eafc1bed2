"""What became of injected faults, told at the end of a test run as `k/N`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pytest

LINES: pytest.StashKey[list[str]] = pytest.StashKey()


class NoteFault(Protocol):
    """Notes that of `num_injected` faults of this kind so many went as promised, and how requests ended meanwhile."""

    def __call__(self, fault: str, num_survived: int, num_injected: int, ends: Mapping[str, int]) -> None: ...


def line_about(fault: str, num_survived: int, num_injected: int, ends: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return f"{fault}: {num_survived}/{num_injected} as promised; requests: {counts}"
