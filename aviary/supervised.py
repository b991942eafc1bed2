"""The other side of a supervisor: what a process does because it is one of several.

Shows every second that its event loop turns, and ends with its supervisor, however that ends. Knows nothing of what
the process serves; `one_gateway` uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Final

SIGN_OF_LIFE_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


def end_with(supervisor_pid: int) -> None:
    """From now on the kernel kills this process when its supervisor ends, even if it hangs then.

    Elsewhere than on Linux the process notices by itself, at its next sign of life.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor_pid:
        _end_now()


@contextlib.asynccontextmanager
async def signs_of_life(fd: int) -> AsyncIterator[Callable[[], None]]:
    """Shown inside, from the moment that what this yields is called: the process serves."""
    os.set_blocking(fd, False)
    serves = asyncio.Event()
    life = asyncio.create_task(_show_life(fd, serves), name="signs-of-life")
    try:
        yield serves.set
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


async def _show_life(fd: int, serves: asyncio.Event) -> None:
    await serves.wait()
    while True:
        try:
            with contextlib.suppress(BlockingIOError):  # a supervisor that is stopped reads again later
                os.write(fd, b".")
        except BrokenPipeError:
            _end_now()
        await asyncio.sleep(SIGN_OF_LIFE_S)


def _end_now() -> None:
    """Without its supervisor a process must let go of the address at once: the next supervisor wants it."""
    os.kill(os.getpid(), signal.SIGKILL)
