"""Several gateway processes on one address: `AVIARY_WORKERS` above 1.

The supervisor binds the address, starts the processes, replaces one that dies or hangs, and hands signals on. It joins
no cluster and answers no request, so what can fail in a gateway cannot fail here. It holds the listening sockets of
all processes, and so do they: one that dies takes only its own connections along, and nobody is refused meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aviary.gateway_process import GatewayProcess
from gateway.listener import bind_for_each, close_all, url_of
from gateway.settings import GatewaySettings
from gateway.shared_metrics import MetricsFolder
from gateway.signals import SIGNALS, answered
from workers.pool.back_off import BackOff

logger = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "aviary", "gateway-process")
CLOSE_LIMIT_S: Final = 40.0
"""For a process to end once its requests have: last bytes, workers' connections, Ray."""
FORCED_LIMIT_S: Final = 5.0
FAILED_STATUS: Final = 1


async def serve_together(
    settings: GatewaySettings,
    *,
    on_started: Callable[[str], None],
    command: Sequence[str] = COMMAND,
    **environment: str,
) -> int:
    """`settings.workers` processes serve the address until a signal; the exit status. Raises `BindError`.

    `on_started` gets the URL once the first of them answers. `environment` is what theirs has besides this process's.
    """
    listeners = bind_for_each(settings.workers, settings)
    url = url_of(listeners[0])
    with contextlib.closing(MetricsFolder()) as metrics:
        supervisor = Supervisor(
            command,
            listeners,
            {**os.environ, **metrics.environment, **environment},
            drain_timeout_s=settings.drain_timeout_s,
            on_started=lambda: on_started(url),
            on_ended=metrics.forget,
        )
        with answered(dict.fromkeys(SIGNALS, supervisor.stop)):
            return await supervisor.run()


class Supervisor:
    """The one owner of the processes."""

    def __init__(
        self,
        command: Sequence[str],
        listeners: list[socket.socket],
        environment: Mapping[str, str],
        *,
        drain_timeout_s: float,
        on_started: Callable[[], None],
        on_ended: Callable[[int], None],
    ) -> None:
        """One process for each of the listeners.

        `on_started` is called once the first of them serves, `on_ended` with the id of every one that ended.
        """
        self._command = command
        self._listeners = listeners
        self._environment = environment
        self._drain_timeout_s = drain_timeout_s
        self._on_started = on_started
        self._on_ended = on_ended
        self._processes: set[GatewayProcess] = set()
        self._first_is_settled = asyncio.Event()
        self._has_served = False
        self._stopping = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._status = 0

    async def run(self) -> int:
        """Until `stop`, or until the very first process ends without having served; the exit status.

        That one starts alone: what keeps it from serving would keep all of them, and is told once.
        """
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self._listeners)):
                tasks.create_task(self._keep_alive(index), name="gateway-process")
                await self._first_is_settled.wait()
        close_all(self._listeners)
        if self._deadline is not None:
            self._deadline.cancel()
        return self._status

    def stop(self) -> None:
        """First call: every process finishes what it has and ends. Second call: all end now, with status 1."""
        if not self._stopping.is_set():
            self._stopping.set()
            # Or clients would go on connecting once the last process has ended, to nobody.
            close_all(self._listeners)
            self._end_all(signal.SIGTERM, self._drain_timeout_s + CLOSE_LIMIT_S)
        else:
            self._status = FAILED_STATUS
            self._end_all(signal.SIGINT, FORCED_LIMIT_S)

    async def _keep_alive(self, index: int) -> None:
        """The process of one listener for ever: whenever it ends, another one."""
        listeners = [self._listeners[index], *self._listeners[:index], *self._listeners[index + 1 :]]
        back_off = BackOff()
        while not self._stopping.is_set():
            delay_s = await self._one_life(listeners, back_off)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
        self._first_is_settled.set()

    async def _one_life(self, listeners: Sequence[socket.socket], back_off: BackOff) -> float:
        """Start a process and wait for its end; returns the seconds before the next shall start."""
        try:
            process = await GatewayProcess.start(self._command, listeners, self._environment, self._note_serving)
        except OSError as error:
            logger.error("a gateway process cannot be started: %s", error)  # noqa: TRY400  the message says it all
            return self._after_end(FAILED_STATUS, back_off, None)
        self._processes.add(process)
        if self._stopping.is_set():
            process.send(signal.SIGTERM)
        status = await process.ended()
        self._processes.discard(process)
        self._on_ended(process.pid)
        return self._after_end(status, back_off, process.served_s)

    def _note_serving(self) -> None:
        if not self._has_served:
            self._has_served = True
            self._on_started()
            self._first_is_settled.set()

    def _after_end(self, status: int, back_off: BackOff, served_s: float | None) -> float:
        """What the end of a process means, and the seconds before the next shall start."""
        if self._stopping.is_set():
            # One that had not served yet does not know the signal, and has nothing to finish.
            if status != 0 and served_s is not None:
                logger.warning("a gateway process did not drain: it ended with %s", _told(status))
                self._status = FAILED_STATUS
            return 0.0
        if not self._has_served:
            logger.error("the first gateway process ended with %s before it served", _told(status))
            self._status = status if status > 0 else FAILED_STATUS
            self._stopping.set()
            return 0.0
        delay_s = back_off.after_failed_start() if served_s is None else back_off.after_death(served_s)
        logger.warning("a gateway process ended with %s; the next starts in %g s", _told(status), delay_s)
        return delay_s

    def _end_all(self, number: signal.Signals, limit_s: float) -> None:
        """Tell every process to end, and kill those that still run after the limit."""
        for process in self._processes:
            process.send(number)
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(limit_s, self._kill_all, limit_s)

    def _kill_all(self, limit_s: float) -> None:
        logger.error("%d gateway processes did not end within %g s and are killed", len(self._processes), limit_s)
        for process in self._processes:
            process.send(signal.SIGKILL)


def _told(status: int) -> str:
    """An exit status, or minus the signal that killed the process."""
    return f"status {status}" if status >= 0 else f"signal {-status}, {signal.strsignal(-status)}"
