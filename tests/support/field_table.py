"""docs/openai_fields.md as data: what becomes of each request field of each endpoint.

A section is an endpoint, a row is one or more fields with one fate. `x.*` is `x` and everything inside; a row that says
more of a field goes before one that says less.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.client_fields import KIND_FIELDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "openai_fields.md"
_FIELDS = re.compile(r"`([^`]+)`")
_STEP = re.compile(r"(\w+)(?:\[(\w+)\])?")


class Fate(StrEnum):
    HONOURED = "honoured"
    NO_EFFECT = "no effect"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Row:
    """What the document says of one field, or of a field and everything inside."""

    path: str
    is_whole: bool
    fate: Fate

    def __str__(self) -> str:
        return f"{self.path}.*" if self.is_whole else self.path

    def covers(self, path: str) -> bool:
        return path == self.path or (self.is_whole and path.startswith((f"{self.path}.", f"{self.path}[")))

    def may_be_named(self, param: str) -> bool:
        """Whether an error with this `param` names the field: itself, what it is in, or the kind of that."""
        names: list[str] = []
        allowed: set[str] = set()
        for name, kind in steps(self.path):
            names.append(name)
            allowed.add(".".join(names))
            if kind:
                allowed |= {".".join([*names, field]) for field in KIND_FIELDS}
        return re.sub(r"\[\d+\]", "", param) in allowed


@cache
def rows_of(heading: str) -> tuple[Row, ...]:
    """All rows below this heading of the document."""
    _, found, rest = DOCUMENT.read_text().partition(f"\n## {heading}\n")
    assert found, f"{DOCUMENT.name} has no heading '{heading}'"
    section = rest.partition("\n## ")[0]
    lines = (line.strip().strip("|").split("|") for line in section.splitlines() if line.startswith("| `"))
    return tuple(
        Row(path.removesuffix(".*"), path.endswith(".*"), Fate(fate.strip()))
        for fields, fate, _remark in lines
        for path in _FIELDS.findall(fields)
    )


@cache
def row_for(path: str, heading: str) -> Row | None:
    """The row below this heading that says most of the field."""
    return max((row for row in rows_of(heading) if row.covers(path)), key=lambda row: len(row.path), default=None)


def steps(path: str) -> list[tuple[str, str]]:
    """Names on the way to a field, each with the kind of object that is meant, or with none."""
    return _STEP.findall(path)


def holds(body: Any, path: str) -> bool:
    """Whether the body has the field."""
    return _holds(body, steps(path))


def _holds(value: Any, path: list[tuple[str, str]]) -> bool:
    if not path:
        return True
    if isinstance(value, list):
        return any(_holds(one, path) for one in value)
    (name, kind), *rest = path
    if not isinstance(value, dict) or name not in value:
        return False
    inner = value[name] if isinstance(value[name], list) else [value[name]]
    return (not rest and not kind) or any(_is_kind(one, kind) and _holds(one, rest) for one in inner)


def _is_kind(value: Any, kind: str) -> bool:
    return not kind or (isinstance(value, dict) and kind in (value.get(field) for field in KIND_FIELDS))
