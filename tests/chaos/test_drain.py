"""`aviary serve` under many open streams is told to end, again and again: every one of them finishes first."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Server, echo_entry, start, write_registry
from tests.support.faults import NoteFault
from tests.support.stream_load import End, StreamLoad

__all__ = ["start"]

MODEL = "tests/slow"
NUM_STREAMS = 50
PROMPT = "every word of this is still said"
EXIT_WITHIN_S = 20

pytestmark = pytest.mark.timeout(600)


async def test_sigterm_with_50_open_streams(
    start: Callable[..., Server], tmp_path: Path, rounds: int, note: NoteFault
) -> None:
    registry = write_registry(tmp_path / "registry", echo_entry(MODEL, step_time_s=0.05, max_batch_size=NUM_STREAMS))
    num_rounds = max(1, rounds // 4)
    ends: Counter[str] = Counter()
    kept = []
    for _ in range(num_rounds):
        server = await asyncio.to_thread(start, AVIARY_REGISTRY=str(registry))
        load = StreamLoad(server.url, MODEL, PROMPT)
        kept.append(await _drains(server, load))
        ends += load.counts
    note(f"SIGTERM under {NUM_STREAMS} streams", sum(kept), num_rounds, ends)
    assert all(kept)


async def _drains(server: Server, load: StreamLoad) -> bool:
    """Whether all streams finished, newcomers were refused, and the process ended well and in time."""
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        streams = [asyncio.create_task(load.run_client(http, num_requests=1)) for _ in range(NUM_STREAMS)]
        while f'aviary_requests_running{{model="{MODEL}"}} {NUM_STREAMS}.0' not in await _metrics(http, server):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        told_at = time.monotonic()
        await asyncio.sleep(0.1)
        ready = await http.get(f"{server.url}/ready")
        refused = await http.post(f"{server.url}/v1/completions", json={"model": MODEL, "prompt": "hi"})
        await asyncio.gather(*streams)
    status = await asyncio.to_thread(server.process.wait, EXIT_WITHIN_S)
    print(f"statuses {ready.status_code}, {refused.status_code}; {load.counts}; exit {status}")
    finished = load.counts[End.COMPLETE] == NUM_STREAMS
    in_time = time.monotonic() - told_at < EXIT_WITHIN_S
    return finished and in_time and (ready.status_code, refused.status_code, status) == (503, 503, 0)


async def _metrics(http: httpx.AsyncClient, server: Server) -> str:
    return (await http.get(f"{server.url}/metrics")).text
