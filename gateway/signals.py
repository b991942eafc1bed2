"""Who answers which signal, for as long as something runs. Used by servers and their supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""Both ask a command to end."""


@contextlib.contextmanager
def answered(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """These handlers run on the event loop inside, the signals' defaults hold again outside."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
