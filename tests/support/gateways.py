"""Several gateway processes of one supervisor, everything but Ray, and clients that stream from them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import living_children
from tests.support.scripted_pool import MODEL

ROOT = Path(__file__).parents[2]
NUM_PROCESSES = 2
START_S = 30
NO_TLS = False
"""Saves each new client the reading of all certificates."""


@dataclass(frozen=True, slots=True)
class Gateways:
    """A running supervisor and its processes."""

    url: str
    parent: subprocess.Popen[str]
    folder: Path
    """Where each process notes that it serves."""

    @property
    def processes(self) -> list[psutil.Process]:
        return living_children(self.parent.pid)

    @property
    def pids(self) -> set[int]:
        return {process.pid for process in self.processes}

    @property
    def serving(self) -> set[int]:
        return {pid for pid in self.pids if (self.folder / str(pid)).exists()}

    def until_all_serve(self, *, without: int = 0) -> None:
        wait_for(lambda: len(self.serving - {without}) == NUM_PROCESSES, START_S)

    def clients(self) -> dict[int, int]:
        """By the port of each client, the process that has its connection."""
        connections = [(one.pid, c) for one in self.processes for c in one.net_connections("tcp")]
        return {c.raddr.port: pid for pid, c in connections if c.status == psutil.CONN_ESTABLISHED}

    def scraped(self, name: str, **labels: str) -> float | None:
        """Sum of the samples of this name and these labels in one scrape; None if there is none."""
        samples = [
            sample.value
            for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", verify=NO_TLS).text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(samples) if samples else None


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


@contextmanager
def running_gateways(folder: Path, **settings: str) -> Iterator[Gateways]:
    """Two processes that serve; the supervisor is killed at the end. `folder` is theirs to write to."""
    ours = {
        "AVIARY_PORT": "0",
        "AVIARY_WORKERS": str(NUM_PROCESSES),
        "TEST_SERVING": str(folder),
        "TMPDIR": str(folder),
    }
    command = [sys.executable, "-m", "tests.support.supervisor"]
    environment = {**os.environ, **ours, **settings}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        gateways = Gateways(parent.stdout.readline().strip(), parent, folder)
        try:
            gateways.until_all_serve()
            yield gateways
        finally:
            parent.kill()


class Stream(threading.Thread):
    """One streamed completion, over a connection of its own."""

    def __init__(self, gateways: Gateways, prompt: str) -> None:
        super().__init__(daemon=True)
        self.port = 0
        self.status = 0
        self.text = ""
        self.error: httpx.HTTPError | None = None
        self.began = threading.Event()
        self._url = gateways.url
        self._prompt = prompt
        self._left = threading.Event()

    def run(self) -> None:
        body = {"model": MODEL, "prompt": self._prompt, "stream": True, "max_tokens": 1_000}
        try:
            url = f"{self._url}/v1/completions"
            with httpx.stream("POST", url, json=body, timeout=30, verify=NO_TLS) as response:
                self.port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
                self.status = response.status_code
                for line in response.iter_lines():
                    self.text += f"{line}\n"
                    self.began.set()
                    if self._left.is_set():
                        return
        except httpx.HTTPError as error:
            self.error = error

    def leave(self) -> None:
        """At the next line."""
        self._left.set()

    @property
    def is_whole(self) -> bool:
        return self.status == httpx.codes.OK and self.text.rstrip().endswith("data: [DONE]")


def open_streams(gateways: Gateways, count: int, prompt: str = "hello") -> list[Stream]:
    streams = [Stream(gateways, prompt) for _ in range(count)]
    for stream in streams:
        stream.start()
    assert all(stream.began.wait(10) for stream in streams)
    return streams


def streams_on_every_process(gateways: Gateways, count: int, prompt: str = "hello") -> dict[int, list[Stream]]:
    """By process: at least one stream on each."""
    by_pid: dict[int, list[Stream]] = {}
    streams, pids = open_streams(gateways, count, prompt), gateways.clients()
    for stream in streams:
        by_pid.setdefault(pids[stream.port], []).append(stream)
    assert by_pid.keys() == gateways.pids
    return by_pid
