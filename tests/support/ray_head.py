"""Ray as an operator starts it: nodes, and a cluster of one whose head remembers on disk, so it may die and come back.

Everything it starts is found by its folder's name and is ended one by one: other clusters of this machine go on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.e2e.conftest import free_port

START_S = 60
END_S = 10


class RayHead:
    """Context manager: runs inside."""

    def __init__(self, port: int | None = None) -> None:
        """At this port, or at one that is free."""
        self._folder = Path(tempfile.mkdtemp(prefix="aviary-head-", dir="/tmp"))
        self.port = port or free_port()
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._restarted: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        head = (f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self._folder / 'ray'}")
        client = f"--ray-client-server-port={free_port()}"
        memory = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self._folder / "gcs")}
        try:
            start_node("--head", *head, client, "--num-cpus=2", RAY_AUTH_MODE="disabled", **memory)
        except RuntimeError:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def kill(self) -> None:
        """The head's own process, which knows who is where; nodes and workers stay."""
        (head,) = [process for process in self.processes() if process.name().startswith("gcs_server")]
        self._command, self._environment = head.cmdline(), head.environ()
        head.kill()
        psutil.wait_procs([head], END_S)

    def restart(self) -> None:
        """As whoever supervises a head does."""
        self._restarted.append(
            subprocess.Popen(
                self._command,
                env=self._environment,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def processes(self) -> list[psutil.Process]:
        return processes_of(self._folder)

    def end(self) -> None:
        """All of it, with what it remembers."""
        end_all(self.processes)
        for head in self._restarted:
            head.wait(END_S)
        shutil.rmtree(self._folder, ignore_errors=True)


def start_node(*options: str, **environment: str) -> None:
    """`ray start`, of a head or of one more node on this machine. Raises `RuntimeError` with what it said."""
    ports = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        *options,
        "--node-ip-address=127.0.0.1",
        "--object-store-memory=100000000",
        "--min-worker-port=0",
        "--max-worker-port=0",
        *(f"--{name}={free_port()}" for name in ports),
    ]
    patience = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    started = subprocess.run(
        command,
        env={**os.environ, **patience, **environment},
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    if started.returncode:
        raise RuntimeError(f"Ray did not start:\n{started.stdout}\n{started.stderr}")


def processes_of(folder: Path) -> list[psutil.Process]:
    """Of the cluster that lives in this folder."""
    return [process for process in psutil.process_iter() if _mentions(process, str(folder))]


def end_all(find: Callable[[], Sequence[psutil.Process]]) -> None:
    """Until it finds no more: those that are killed may have started others meanwhile.

    And what they started: a process with a title of its own no longer shows where it belongs.
    """
    deadline = time.monotonic() + END_S
    while (processes := find()) and time.monotonic() < deadline:
        everything = {*processes, *(child for process in processes for child in _descendants(process))}
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, 1)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _mentions(process: psutil.Process, folder: str) -> bool:
    try:
        return any(folder in text for text in (*process.cmdline(), process.environ().get("RAY_gcs_storage_path", "")))
    except psutil.Error:
        return False
