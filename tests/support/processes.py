"""Processes as seen from outside: one that ended but that nobody has waited for yet does not run any more."""

from __future__ import annotations

import psutil


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def living_children(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if runs(child)]
