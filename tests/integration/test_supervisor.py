"""The supervisor of gateway processes, over small programs that speak their side of the pipe."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from aviary import gateway_process, supervisor
from aviary.supervisor import Supervisor
from gateway.listener import bind_for_each
from gateway.settings import GatewaySettings
from tests.support.processes import living_children, runs

PROGRAM = """
import os, signal, sys, time
def serve():
    os.write(int(sys.argv[2]), b".")
def on(name, handler):
    signal.signal(getattr(signal, name), handler)
"""
OBEDIENT = """
on("SIGTERM", lambda *_: sys.exit(0))
while True:
    serve()
    time.sleep(0.05)
"""
STUBBORN = """
on("SIGTERM", signal.SIG_IGN)
on("SIGINT", signal.SIG_IGN)
while True:
    serve()
    time.sleep(0.05)
"""
SLOW_TO_DRAIN = """
on("SIGTERM", signal.SIG_IGN)
on("SIGINT", lambda *_: sys.exit(1))
while True:
    serve()
    time.sleep(0.05)
"""
NUM_PROCESSES = 3


class Supervised:
    """A running supervisor, and what it told."""

    def __init__(self, what: str, num_processes: int) -> None:
        self.num_starts = 0
        self.ended: list[int] = []
        self.supervisor = Supervisor(
            (sys.executable, "-c", PROGRAM + what),
            bind_for_each(num_processes, GatewaySettings(port=0)),
            dict(os.environ),
            drain_timeout_s=0.2,
            on_started=self._count,
            on_ended=self.ended.append,
        )
        self.running = asyncio.create_task(self.supervisor.run())

    def _count(self) -> None:
        self.num_starts += 1

    @property
    def processes(self) -> list[psutil.Process]:
        return living_children(os.getpid())

    @property
    def pids(self) -> set[int]:
        return {process.pid for process in self.processes}

    async def until_it_runs(self, num_processes: int = NUM_PROCESSES) -> set[int]:
        await until(lambda: len(self.pids) == num_processes)
        await asyncio.sleep(0.3)  # they know their signals by now
        return self.pids

    async def status(self, timeout_s: float = 5) -> int:
        return await asyncio.wait_for(self.running, timeout_s)


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  processes are looked at from outside
            await asyncio.sleep(0.02)


@asynccontextmanager
async def supervised(what: str, num_processes: int = NUM_PROCESSES) -> AsyncIterator[Supervised]:
    one = Supervised(what, num_processes)
    try:
        yield one
    finally:
        one.supervisor.stop()
        for process in one.processes:
            process.kill()
        await asyncio.wait({one.running}, timeout=5)


async def test_the_first_process_starts_alone_and_the_others_follow_it() -> None:
    async with supervised("time.sleep(0.5)" + OBEDIENT) as one:
        await until(lambda: len(one.pids) == 1)
        await asyncio.sleep(0.2)
        assert (len(one.pids), one.num_starts) == (1, 0)
        await until(lambda: len(one.pids) == NUM_PROCESSES)
        assert one.num_starts == 1


async def test_a_first_process_that_cannot_serve_ends_the_command_with_its_status() -> None:
    async with supervised("sys.exit(2)") as one:
        assert await one.status() == 2
        assert (len(one.ended), one.num_starts) == (1, 0)


async def test_a_command_that_cannot_be_run_ends_the_supervisor() -> None:
    async with supervised(OBEDIENT) as one:
        one.supervisor._command = ("/does/not/exist",)
        assert await one.status() == 1


async def test_a_process_that_dies_is_told_and_replaced_and_the_others_go_on() -> None:
    async with supervised(OBEDIENT) as one:
        before = await one.until_it_runs()
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(one.pids) == NUM_PROCESSES and victim not in one.pids)
        assert before - {victim} <= one.pids
        await until(lambda: one.ended == [victim])


async def test_processes_that_die_again_and_again_are_started_ever_more_slowly() -> None:
    async with supervised("serve(); time.sleep(0.05); sys.exit(3)", num_processes=1) as one:
        await asyncio.sleep(3.5)
        # At 0, at once again, after 1 s, after 2 s more.
        assert 3 <= len(one.ended) <= 4


async def test_a_process_that_hangs_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_process, "SILENCE_LIMIT_S", 1.0)
    async with supervised(OBEDIENT) as one:
        victim = min(await one.until_it_runs())
        stopped_at = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        await until(lambda: len(one.pids) == NUM_PROCESSES and victim not in one.pids)
        assert time.monotonic() - stopped_at > 0.9
        assert one.ended == [victim]


async def test_a_process_that_never_comes_to_serve_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_process, "START_LIMIT_S", 0.5)
    async with supervised("time.sleep(60)") as one:
        assert await one.status() == 1


async def test_stopping_ends_all_with_status_0() -> None:
    async with supervised(OBEDIENT) as one:
        await one.until_it_runs()
        one.supervisor.stop()
        assert await one.status() == 0
        assert len(one.ended) == NUM_PROCESSES


async def test_stopping_while_the_first_process_starts_is_an_orderly_end() -> None:
    async with supervised("time.sleep(60)") as one:
        await until(lambda: len(one.pids) == 1)
        one.supervisor.stop()
        assert await one.status() == 0


async def test_stopping_twice_ends_all_at_once_with_status_1() -> None:
    async with supervised(SLOW_TO_DRAIN) as one:
        await one.until_it_runs()
        one.supervisor.stop()
        await asyncio.sleep(0.1)
        assert len(one.pids) == NUM_PROCESSES
        one.supervisor.stop()
        assert await one.status(timeout_s=2) == 1


async def test_what_does_not_end_by_itself_is_killed_and_shows_in_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "CLOSE_LIMIT_S", 0.5)
    async with supervised(STUBBORN) as one:
        await one.until_it_runs()
        one.supervisor.stop()
        assert await one.status(timeout_s=3) == 1


async def test_no_descriptor_is_left_of_processes_that_ended() -> None:
    async with supervised(OBEDIENT, num_processes=1) as one:
        await one.until_it_runs(1)
        before = psutil.Process().num_fds()
        victim = min(one.pids)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(one.pids) == 1 and victim not in one.pids)
        assert psutil.Process().num_fds() == before


ORPHANS = f"""
import asyncio, os, sys
from aviary.supervisor import Supervisor
from gateway.listener import bind_for_each
from gateway.settings import GatewaySettings
program = {PROGRAM!r} + "from aviary.supervised import end_with; end_with(int(sys.argv[1]))" + {STUBBORN!r}
listeners = bind_for_each(2, GatewaySettings(port=0))
command = (sys.executable, "-c", program)
told = lambda: print("started", flush=True)

async def main():
    one = Supervisor(command, listeners, os.environ, drain_timeout_s=1, on_started=told, on_ended=print)
    await one.run()

asyncio.run(main())
"""


async def test_nothing_outlives_a_supervisor_that_is_killed_not_even_what_hangs() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHANS, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    assert await asyncio.wait_for(parent.stdout.readline(), 20) == b"started\n"
    family = psutil.Process(parent.pid)
    await until(lambda: len(family.children()) == 2)
    await asyncio.sleep(1)
    children = family.children()
    children[0].suspend()
    parent.kill()
    await parent.wait()
    await until(lambda: not any(runs(child) for child in children), timeout_s=3)
