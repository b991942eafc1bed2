"""One of a supervisor's gateway processes, as the supervisor sees it: a process, and the signs of life it sends.

It inherits the listening sockets and the far end of a pipe, through which it shows every second that its event loop
turns; the first time says that it serves. One that is silent for too long is killed: what it has open would hang for
ever. Knows nothing of what the process does; `supervised` is its other side.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

logger = logging.getLogger(__name__)

START_LIMIT_S: Final = 120.0
"""Imports and joining Ray take seconds, on a machine that is busy with many starts much longer."""
SILENCE_LIMIT_S: Final = 30.0
_READ_BYTES: Final = 4096


class GatewayProcess:
    """A running process, made by `start` and over with `ended`."""

    def __init__(self, process: asyncio.subprocess.Process, life: int, on_serving: Callable[[], None]) -> None:
        self._process = process
        self._life = life
        self._on_serving = on_serving
        self._serves_since: float | None = None
        self._loop = asyncio.get_running_loop()
        self._silence = self._loop.call_later(START_LIMIT_S, self._kill_silent, START_LIMIT_S)
        self._loop.add_reader(life, self._hear)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        listeners: Sequence[socket.socket],
        environment: Mapping[str, str],
        on_serving: Callable[[], None],
    ) -> Self:
        """Starts the command. Raises `OSError`. `on_serving` is called once it answers.

        Its last arguments are our process id, the descriptor to show its life on, those of its own listener and of the
        others'.
        """
        life, far_end = os.pipe()
        descriptors = (far_end, *(listener.fileno() for listener in listeners))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *map(str, (os.getpid(), *descriptors)),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=descriptors,
                # Ctrl-C goes to everybody in a terminal's session; how the processes end is the supervisor's to say.
                start_new_session=True,
            )
        except BaseException:
            os.close(life)
            raise
        finally:
            os.close(far_end)
        return cls(process, life, on_serving)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def served_s(self) -> float | None:
        """Seconds since it began to serve; None when it never did."""
        return None if self._serves_since is None else time.monotonic() - self._serves_since

    def send(self, number: signal.Signals) -> None:
        """The signal, if the process still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Waits for its end; the exit status, or minus the signal that killed it."""
        try:
            return await self._process.wait()
        finally:
            self._silence.cancel()
            self._loop.remove_reader(self._life)
            os.close(self._life)

    def _hear(self) -> None:
        if not os.read(self._life, _READ_BYTES):
            self._loop.remove_reader(self._life)  # its end, or close to it
            return
        if self._serves_since is None:
            self._serves_since = time.monotonic()
            self._on_serving()
        self._silence.cancel()
        self._silence = self._loop.call_later(SILENCE_LIMIT_S, self._kill_silent, SILENCE_LIMIT_S)

    def _kill_silent(self, limit_s: float) -> None:
        logger.error("gateway process %d shows no sign of life for %g s and is killed", self.pid, limit_s)
        self.send(signal.SIGKILL)
