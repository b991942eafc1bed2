"""How `serve` is ended while it starts: once, and with everything cleaned up."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aviary import serve as serve_module
from aviary.serve import cancelled_by_signals
from workers.pool.state import Applied


async def test_a_second_signal_does_not_cut_the_clean_up_short(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned_up = False

    async def command() -> None:
        nonlocal cleaned_up
        with cancelled_by_signals():
            try:
                await asyncio.sleep(60)
            finally:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGTERM)
                await asyncio.sleep(0.01)
                cleaned_up = True

    task = asyncio.create_task(command())
    await asyncio.sleep(0)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned_up
    assert capsys.readouterr().out == "still stopping\nstill stopping\n"


class EmptyPool:
    """A manager that was started in vain."""

    is_shut_down = False

    async def add(self, entries: object, options: object) -> Applied:
        return Applied()

    async def remove(self, model_ids: object, timeout_s: float) -> None: ...

    async def view(self) -> Any:
        return SimpleNamespace(models=())

    async def shutdown(self, timeout_s: float) -> None:
        self.is_shut_down = True


async def test_a_manager_that_starts_while_the_command_is_cancelled_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, started = EmptyPool(), asyncio.Event()

    async def find() -> None: ...

    async def find_or_start() -> EmptyPool:
        started.set()
        await asyncio.sleep(0.01)
        return pool

    monkeypatch.setattr(serve_module, "PoolClient", SimpleNamespace(find=find, find_or_start=find_or_start))
    settings = cast("Any", SimpleNamespace(drain_timeout_s=1.0, load_timeout_s=1.0))

    async def command() -> None:
        async with serve_module._deployed(
            settings, [], cast("Any", SimpleNamespace(is_local=False, replaced=asyncio.Event()))
        ):
            pass

    task = asyncio.create_task(command())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.is_shut_down
