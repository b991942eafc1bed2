"""What a worker says about itself to the pool manager. Plain data; the worker makes it, the pool reads it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from model_registry.contract import WorkerStatus


class WorkerPhase(StrEnum):
    """Life of a worker's process, as seen from inside."""

    IDLE = "idle"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


class WorkerReport(msgspec.Struct, frozen=True, kw_only=True):
    """`version` grows with every change of anything but `status` and `fetched_bytes`."""

    version: int
    phase: WorkerPhase
    detail: str = ""
    """What it is doing; one line for people."""
    pid: int
    address: str | None = None
    max_model_len: int | None = None
    fetched_bytes: int = 0
    """Bytes of weights that its process has fetched; the latest, as `status` is."""
    status: WorkerStatus = WorkerStatus()
