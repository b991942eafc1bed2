"""The requests to simulate: when each arrives, how long its prompt is, how many tokens it will generate.

Read from CSV with the columns `arrival_s`, `prompt_tokens`, `output_tokens` and, for several models, `model`; or made
by `workload`. Knows nothing of replicas.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aviary.errors import UsageError

COLUMNS: Final = ("arrival_s", "prompt_tokens", "output_tokens")
MODEL_COLUMN: Final = "model"

Row = tuple[float, int, int]
"""arrival, prompt tokens, output tokens"""


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of one model in order of arrival, as columns: a million of them fit in 24 MB."""

    arrivals: array[float]
    """Seconds since the trace began."""
    prompt_tokens: array[int]
    output_tokens: array[int]
    duration_s: float
    """How long the trace lasts, at least until the last arrival."""

    def __len__(self) -> int:
        return len(self.arrivals)

    @classmethod
    def of(cls, rows: Iterable[Row], duration_s: float = 0.0) -> Trace:
        ordered = sorted(rows)
        return cls(
            array("d", (row[0] for row in ordered)),
            array("q", (row[1] for row in ordered)),
            array("q", (row[2] for row in ordered)),
            max(duration_s, ordered[-1][0]) if ordered else duration_s,
        )


def read_traces(path: Path, model_ids: Sequence[str]) -> dict[str, Trace]:
    """The traces of these models; their common beginning is the first arrival of all. Raises `UsageError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_rows(path, csv.DictReader(file), model_ids))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV: {error}") from None
    if not rows:
        raise UsageError(f"{path}: has no requests; give one line for each under the header {','.join(COLUMNS)}")
    start = min(row[0] for _, row in rows)
    end = max(row[0] for _, row in rows)
    return {
        model_id: Trace.of(
            ((arrival - start, prompt, output) for id_, (arrival, prompt, output) in rows if id_ == model_id),
            end - start,
        )
        for model_id in model_ids
    }


def _rows(path: Path, reader: csv.DictReader[str], model_ids: Sequence[str]) -> Iterator[tuple[str, Row]]:
    header = [name for name in (reader.fieldnames or ()) if name]
    if missing := [name for name in COLUMNS if name not in header]:
        raise UsageError(
            f"{path}: has no column {', '.join(missing)}; its first line must name {', '.join(COLUMNS)} and, for "
            f"several models, {MODEL_COLUMN}"
        )
    if MODEL_COLUMN not in header and len(model_ids) > 1:
        raise UsageError(f"{path}: has no column {MODEL_COLUMN}, which of {len(model_ids)} models is meant? add it")
    for cells in reader:
        where = f"{path}:{reader.line_num}"
        model_id = cells[MODEL_COLUMN] if MODEL_COLUMN in header else model_ids[0]
        if model_id not in model_ids:
            raise UsageError(f"{where}: {model_id} is none of the models {', '.join(model_ids)}; name it in --models")
        yield (
            model_id,
            (
                _number(where, cells, "arrival_s"),
                _count(where, cells, "prompt_tokens"),
                _count(where, cells, "output_tokens"),
            ),
        )


def _number(where: str, cells: Mapping[str, str | None], column: str) -> float:
    try:
        value = float(cells[column] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: {column} is {cells[column]!r}, which is not a number of seconds")
    return value


def _count(where: str, cells: Mapping[str, str | None], column: str) -> int:
    text = (cells[column] or "").strip()
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise UsageError(f"{where}: {column} is {cells[column]!r}, which is not a whole number of at least 1")
    return int(text)
