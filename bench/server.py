"""The whole system over HTTP: `aviary serve` as a process, streamed completions from concurrent clients.

Compares eight requests at the same time with eight one after the other, and prints the latencies that clients see.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import httpx

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NUM_REQUESTS = 8
PROMPT_WORDS = 90
NEW_TOKENS = 64
START_TIMEOUT_S = 600
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards build boxes of jade near the old river bank"


@dataclass(frozen=True, slots=True)
class Timing:
    """One streamed request as its client saw it."""

    first_token_s: float
    gaps_s: list[float]
    total_s: float


def measure(rounds: int) -> None:
    with _server() as url:
        asyncio.run(_compare(url, rounds))


async def _compare(url: str, rounds: int) -> None:
    print(f"\n{MODEL} over HTTP: {NUM_REQUESTS} requests of {NEW_TOKENS} tokens, median of {rounds} rounds\n")
    together, in_turn, timings = [], [], []
    async with httpx.AsyncClient(base_url=url, timeout=START_TIMEOUT_S) as client:
        await asyncio.gather(*(_complete(client, prompt) for prompt in _prompts(0)))
        for seed in range(1, rounds + 1):
            started = time.perf_counter()
            timings += await asyncio.gather(*(_complete(client, prompt) for prompt in _prompts(2 * seed)))
            together.append(time.perf_counter() - started)
            started = time.perf_counter()
            for prompt in _prompts(2 * seed + 1):
                await _complete(client, prompt)
            in_turn.append(time.perf_counter() - started)
    num_tokens = NUM_REQUESTS * NEW_TOKENS
    rate, base = num_tokens / statistics.median(together), num_tokens / statistics.median(in_turn)
    first = sorted(timing.first_token_s for timing in timings)
    gaps = sorted(gap for timing in timings for gap in timing.gaps_s)
    print(f"together {rate:.1f} tok/s, one after the other {base:.1f} tok/s, ratio {rate / base:.2f}")
    print(f"time to first token p50 {_percentile(first, 0.5)} p99 {_percentile(first, 0.99)}")
    print(f"between tokens      p50 {_percentile(gaps, 0.5)} p99 {_percentile(gaps, 0.99)}")


async def _complete(client: httpx.AsyncClient, prompt: str) -> Timing:
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    started = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        stamps = [time.perf_counter() async for line in response.aiter_lines() if line.startswith("data: {")]
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    return Timing(first_token_s=stamps[0] - started, gaps_s=gaps, total_s=time.perf_counter() - started)


def _prompts(seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(TEXT.split(), k=PROMPT_WORDS)) for _ in range(NUM_REQUESTS)]


def _percentile(values: list[float], share: float) -> str:
    return f"{1000 * values[min(len(values) - 1, int(share * len(values)))]:.1f} ms"


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """`aviary serve` on a free port; stopped as a person would, with Ctrl-C."""
    port = _free_port()
    environment = {**os.environ, "AVIARY_PORT": str(port), "AVIARY_MODELS": MODEL}
    process = subprocess.Popen([sys.executable, "-m", "aviary", "serve"], env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server at {url} did not become ready within {START_TIMEOUT_S} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
