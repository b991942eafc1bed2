"""Starts `aviary serve` as a person would, as a process of its own, and stops it with Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Server:
    """A running `aviary serve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def processes(self) -> list[psutil.Process]:
        """It and everything it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def worker_pids(self) -> list[int]:
        return [process.pid for process in self.processes() if _title(process).startswith("ray::Worker")]

    def model(self, model_id: str) -> dict[str, Any]:
        response = httpx.get(f"{self.url}/v1/models/{model_id}")
        response.raise_for_status()
        card: dict[str, Any] = response.json()
        return card

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended:\n{self.output}"
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not within {timeout_s} s:\n{self.output}")

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=STOP_TIMEOUT_S)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without any Aviary or Ray settings but the given ones."""
    inherited = {name: value for name, value in os.environ.items() if name == "AVIARY_CACHE_DIR" or not _is_ours(name)}
    return {**inherited, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", **settings}


def _is_ours(name: str) -> bool:
    return name.startswith(("AVIARY_", "RAY_"))


def write_registry(folder: Path, *entries: dict[str, Any]) -> Path:
    """A registry folder of these entries, each under the file name its model id asks for."""
    folder.mkdir(exist_ok=True)
    for entry in entries:
        name = entry["model_config"]["model_id"].replace("/", "--")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    return folder


def echo_entry(model_id: str, *, replicas: int = 1, step_time_s: float = 0.0, **generation: Any) -> dict[str, Any]:
    return {
        "deployment_config": {"autoscaling_config": {"min_replicas": replicas, "max_replicas": replicas}},
        "model_config": {
            "model_id": model_id,
            "initialization": {"initializer": {"type": "Echo", "step_time_s": step_time_s}},
            "generation": generation,
        },
        "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 0.1},
    }


@contextmanager
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers inside; outside, none of them runs any more."""
    servers: list[Server] = []

    def start(*, ready: bool = True, python: str = sys.executable, **settings: str) -> Server:
        port = free_port()
        log = tmp_path_factory.mktemp("serve") / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, "-m", "aviary", "serve"],
                env=environment(AVIARY_PORT=str(port), **settings),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        servers.append(server)
        if ready:
            server.wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == httpx.codes.OK)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.interrupt()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers; each is stopped when its module's tests are done, if it still runs."""
    with starting(tmp_path_factory) as start:
        yield start
