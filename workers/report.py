"""What a process of a replica says about itself to the pool manager, and the board it keeps that on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from model_registry.contract import WorkerStatus
from model_registry.tool_formats import AnswerFormat
from workers.errors import LoadError, first_line

logger = logging.getLogger(__name__)


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
    answer_format: AnswerFormat | None = None
    is_resizing: bool = False
    """It serves, and will take the sizes that a changed file wants."""
    refusal: str = ""
    """Why it serves with earlier sizes than the file wants."""
    fetched_bytes: int = 0
    """Bytes of weights that its process has fetched; the latest, as `status` is."""
    status: WorkerStatus = WorkerStatus()


class ReportBoard:
    """The present report of one process. Lives on its event loop; `progress` may be called from any thread."""

    def __init__(self) -> None:
        self.report = WorkerReport(version=0, phase=WorkerPhase.IDLE, pid=os.getpid())
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin_loading(self) -> None:
        """From the event loop, before the first `progress`."""
        self._loop = asyncio.get_running_loop()
        self.tell(phase=WorkerPhase.LOADING, detail="loading")

    @contextlib.contextmanager
    def failures_told(self, what: str) -> Iterator[None]:
        """Whatever is raised while loading is told, as a `LoadError` of one line; the traceback stays in the log."""
        try:
            yield
        except LoadError as error:
            self.tell(phase=WorkerPhase.FAILED, detail=str(error))
            raise
        except Exception as error:
            logger.exception("%s cannot be loaded", what)
            reason = f"{type(error).__name__}: {first_line(error)}"
            self.tell(phase=WorkerPhase.FAILED, detail=reason)
            raise LoadError(reason) from None

    def tell(self, **changes: object) -> None:
        """Change the report and wake whoever waits for a change."""
        self.report = replace(self.report, version=self.report.version + 1, **changes)
        self._changed.set()
        self._changed = asyncio.Event()

    def progress(self, line: str) -> None:
        """One line for people."""
        # The loop is closed only while the process ends; what then comes from a thread is of no use to anybody.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self.tell(detail=line))

    async def newer_than(self, seen: int | None, timeout_s: float) -> WorkerReport:
        """The present report; when the caller has `seen` it, waits up to `timeout_s` for a newer one."""
        if seen == self.report.version:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
        return self.report
