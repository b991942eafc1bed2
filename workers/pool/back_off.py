"""How long to wait before the next attempt at a replica. Pure; the deployment owns one per replica it wants."""

from __future__ import annotations

from typing import Final

FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 60.0
STABLE_S: Final = 60.0
"""A replica that served this long owes nothing to the failures before it."""


class BackOff:
    """Delays of 1, 2, 4 … 60 s; the first replacement of a replica that had served is free."""

    def __init__(self) -> None:
        self._num_failures = 0

    @property
    def num_failures(self) -> int:
        """Failures in a row."""
        return self._num_failures

    def after_failed_start(self) -> float:
        """Seconds to wait after an attempt that never served."""
        self._num_failures += 1
        return self._delay_s(self._num_failures)

    def after_death(self, served_s: float) -> float:
        """Seconds to wait after a replica died that had served for `served_s`."""
        if served_s >= STABLE_S:
            self._num_failures = 0
        self._num_failures += 1
        return self._delay_s(self._num_failures - 1)

    def _delay_s(self, num_failures: int) -> float:
        if num_failures == 0:
            return 0.0
        # The exponent is bounded too: 2.0 to the power of a long night overflows.
        return min(FIRST_DELAY_S * 2.0 ** min(num_failures - 1, 10), MAX_DELAY_S)
