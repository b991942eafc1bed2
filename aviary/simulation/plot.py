"""Outcomes as a picture: what arrived, what waited, how many replicas there were.

Needs matplotlib, of the extra `simulate`; imported only when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aviary.simulation.outcome import Moment, Outcome


def save_plot(path: Path, results: Sequence[tuple[str, Outcome]]) -> None:
    """Writes a PNG file. Raises `OSError`."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    arrived, queued, replicas = figure.subplots(3, 1, sharex=True)
    for outcome in {outcome.model_id: outcome for _, outcome in results}.values():
        # The same for all settings of a model.
        arrived.step(_hours(outcome)[1:], list(_rates(outcome.moments)), where="pre", linewidth=1, color="gray")
    for label, outcome in results:
        name = " ".join(filter(None, (outcome.model_id, label)))
        hours = _hours(outcome)
        queued.step(hours, [moment.num_queued for moment in outcome.moments], where="post", linewidth=1)
        replicas.step(hours, [moment.num_paid for moment in outcome.moments], where="post", label=name)
    arrived.set_ylabel("requests per second")
    queued.set_ylabel("requests waiting")
    replicas.set_ylabel("replicas, loading ones included")
    replicas.set_xlabel("hours")
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)
    FigureCanvasAgg(figure).print_png(path)


def _hours(outcome: Outcome) -> list[float]:
    return [moment.at / 3600 for moment in outcome.moments]


def _rates(moments: Sequence[Moment]) -> Iterator[float]:
    for before, after in pairwise(moments):
        yield (after.num_arrived - before.num_arrived) / (after.at - before.at)
