"""Why a worker cannot serve. Messages are one line for people: they reach `aviary status` and the 503 body.

WorkerError
├── DeviceLostError           the accelerator failed for good
│   └── RankLostError         another rank of its group is gone (defined in `group`)
└── LoadError                 the model cannot be loaded
    ├── SourceError           its weights cannot be had
    └── UnsupportedModelError its architecture or settings cannot be run by this engine
"""

from __future__ import annotations


class WorkerError(Exception):
    """Base of everything a worker raises on purpose."""


class DeviceLostError(WorkerError):
    """The accelerator failed for good: no request of this process can succeed any more."""


class LoadError(WorkerError):
    """The model cannot be loaded."""


class SourceError(LoadError):
    """The model's weights cannot be had."""


class UnsupportedModelError(LoadError):
    """The model's architecture or settings cannot be run by this engine."""


def first_line(error: BaseException) -> str:
    """An exception's message cut to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
