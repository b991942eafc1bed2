"""The pool as a table for people: what `aviary status` prints. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.model_lane import unavailable_reason
from model_registry.contract import PoolView


def table_of(view: PoolView) -> list[str]:
    """The pool as aligned lines: model, replicas, state and detail of each replica."""
    rows = [("MODEL", "REPLICA", "STATE", "DETAIL")]
    for model in view.models:
        rows.extend(
            (model.model_id, replica.replica_id, str(replica.state), replica.detail or replica.address or "")
            for replica in model.replicas
        )
        if not model.replicas:
            rows.append((model.model_id, "-", "-", unavailable_reason(model)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return list(_aligned(rows, widths))


def _aligned(rows: Sequence[tuple[str, str, str, str]], widths: Sequence[int]) -> Iterator[str]:
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join((*cells, row[3])).rstrip()
