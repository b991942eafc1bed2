"""One scrape shows all gateway processes of an address: prometheus-client's multiprocess mode, and nothing else of it.

Each process keeps its counters, histograms and shared gauges in files of one folder, and whichever is scraped adds all
of them up. What a process counted outlives it, what it had open does not. The library chooses this mode when it is
imported with its variable set; the supervisor sets that for the processes it starts. A process alone keeps its values
in memory and has no files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


def is_shared() -> bool:
    """Whether this process's values are in files that others read."""
    return _VARIABLE in os.environ


def shown_with(local: CollectorRegistry) -> CollectorRegistry:
    """What a scrape shows where values are shared: the sums over all processes, and what this one knows by itself."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(local)
    return registry


class MetricsFolder:
    """The files of the processes of one supervisor, private to its user."""

    def __init__(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="aviary-metrics-"))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to keep its values here."""
        return {_VARIABLE: str(self._path)}

    def forget(self, pid: int) -> None:
        """The process has ended: nothing is running or queued in it any more."""
        mark_process_dead(pid, str(self._path))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
