"""Outcomes as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aviary.simulation.outcome import Outcome, percentile
from aviary.simulation.replica import Ending

HEADER: Final = ("MODEL", "SETTINGS", "REQUESTS", "429", "504", "400", "TTFT P50", "P99", "LATENCY P50", "P99",
                 "REPLICA-H", "COST", "PEAK")  # fmt: skip
RARE: Final = frozenset(("SETTINGS", "504", "400", "COST"))
"""Shown where there is something to show."""
TEXT: Final = frozenset(("MODEL", "SETTINGS"))
"""All others are numbers."""


def table_of(results: Sequence[tuple[str, Outcome]], price_per_hour: float | None) -> list[str]:
    """One line per label and outcome; times in seconds."""
    rows = [HEADER, *(_row(label, outcome, price_per_hour) for label, outcome in results)]
    columns = [
        column
        for column in zip(*rows, strict=True)
        if column[0] not in RARE or any(cell not in ("", "0") for cell in column[1:])
    ]
    widths = [max(map(len, column)) for column in columns]
    is_text = [column[0] in TEXT for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]


def _row(label: str, outcome: Outcome, price_per_hour: float | None) -> tuple[str, ...]:
    hours = outcome.replica_s / 3600
    return (
        outcome.model_id,
        label,
        str(outcome.num_requests),
        *(str(outcome.endings.get(ending, 0)) for ending in (Ending.FULL, Ending.EXPIRED, Ending.TOO_LONG)),
        *(_seconds(percentile(outcome.first_token_s, share)) for share in (0.5, 0.99)),
        *(_seconds(percentile(outcome.latency_s, share)) for share in (0.5, 0.99)),
        f"{hours:.1f}",
        "" if price_per_hour is None else f"{hours * price_per_hour:.2f}",
        str(outcome.peak_replicas),
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
