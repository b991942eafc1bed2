"""Gateways in front of a pool that outlives them, and of a cluster whose head does not answer, with the echo model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import Server, echo_entry, environment, free_port, write_registry
from tests.support.processes import living_children, runs
from tests.support.ray_head import RayHead

MODEL = "tests/echo"
LATER_MODEL = "tests/later"
NEW_GATEWAY_S = 5.0
ORPHANS_END_S = 5.0
HEAD_AWAY_S = 35.0
FOLLOWS_AGAIN_S = 60.0
REPLACED_WITHIN_S = 90.0
TEXT = "x" * 400
"""Said in 20 s."""

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of its own with the model in its pool."""

    head: RayHead
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment(RAY_ADDRESS=self.head.address, RAY_AUTH_MODE="disabled")

    def aviary(self, *arguments: str, timeout_s: float = 90) -> str:
        """What a command that succeeds prints."""
        command = [sys.executable, "-m", "aviary", *arguments]
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=True
        ).stdout

    def deploy(self, *model_ids: str) -> None:
        entries = [echo_entry(model_id, step_time_s=0.05, max_batch_size=8) for model_id in model_ids]
        self.aviary("deploy", "--registry", str(write_registry(self.folder, *entries)))

    def worker_pids(self) -> set[int]:
        """Of the models' processes."""
        return {one.pid for one in self.head.processes() if one.name().startswith("ray::Worker")}

    def has_channel(self, gateway_pid: int) -> bool:
        """Whether a gateway's process is connected to a model's."""
        workers = [psutil.Process(pid) for pid in self.worker_pids()]
        ports = {c.laddr.port for one in workers for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        connections = psutil.Process(gateway_pid).net_connections("tcp")
        return any(c.raddr.port in ports for c in connections if c.status == psutil.CONN_ESTABLISHED)

    def gateway(self, num_processes: int = 1) -> AbstractContextManager[Server]:
        """A gateway that was started, and may not be there yet."""
        return self.running("gateway", f"--workers={num_processes}")

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Server]:
        """A command that goes on, on a port of its own."""
        port = free_port()
        log = self.folder / f"log-{port}"
        command = [sys.executable, "-m", "aviary", *arguments, f"--port={port}"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield Server(f"http://127.0.0.1:{port}", process, log)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with RayHead() as head:
        cluster = Cluster(head, tmp_path_factory.mktemp("cluster"))
        cluster.deploy(MODEL)
        yield cluster


def said(server: Server, model: str = MODEL, text: str = "hello", timeout_s: float = 30) -> str:
    """The model's answer; empty while the gateway does not answer."""
    body = {"model": model, "prompt": text}
    try:
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=timeout_s)
    except httpx.TransportError:
        return ""
    return str(response.json()["choices"][0]["text"]) if response.status_code == httpx.codes.OK else ""


def num_running(server: Server) -> float:
    """Sequences in the model's replica, whoever asked for them."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    prefix = f'aviary_worker_requests_running{{model="{MODEL}"'
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(prefix))


@contextmanager
def streaming(server: Server, count: int) -> Iterator[list[str]]:
    """Streams that run meanwhile; how each ended is added as it does: its text, or the error's name."""
    ends: list[str] = []
    began = [threading.Event() for _ in range(count)]

    def stream(has_begun: threading.Event) -> None:
        text = ""
        try:
            with server.client as client:
                for chunk in client.completions.create(model=MODEL, prompt=TEXT, max_tokens=len(TEXT), stream=True):
                    text += chunk.choices[0].text
                    has_begun.set()
        except (openai.APIError, httpx.HTTPError) as error:
            text = type(error).__name__
        ends.append(text)

    threads = [threading.Thread(target=stream, args=(event,), daemon=True) for event in began]
    for thread in threads:
        thread.start()
    assert all(event.wait(20) for event in began), ends
    yield ends
    for thread in threads:
        thread.join(60)


def test_after_a_gateway_was_killed_a_new_one_serves_the_same_replicas_within_seconds(cluster: Cluster) -> None:
    workers = cluster.worker_pids()
    with cluster.gateway() as watcher, cluster.gateway() as victim:
        for server in (watcher, victim):
            server.wait_until(lambda server=server: said(server) == "hello", timeout_s=60)  # type: ignore[misc]
        with streaming(victim, 3) as ends:
            watcher.wait_until(lambda: num_running(watcher) == 3, timeout_s=5)
            victim.process.kill()
            killed_at = time.monotonic()
            with cluster.gateway() as successor:
                successor.wait_until(lambda: said(successor) == "hello", timeout_s=30)
                served_s = time.monotonic() - killed_at
            watcher.wait_until(lambda: num_running(watcher) == 0, timeout_s=ORPHANS_END_S)
        assert len(ends) == 3
        assert TEXT not in ends
    assert cluster.worker_pids() == workers != set()
    assert served_s <= NEW_GATEWAY_S


def test_a_gateway_of_two_processes_serves_through_the_death_of_one(cluster: Cluster) -> None:
    with cluster.gateway(2) as server:
        server.wait_until(lambda: said(server) == "hello", timeout_s=60)
        server.wait_until(lambda: len(living_children(server.process.pid)) == 2, timeout_s=60)
        os.kill(living_children(server.process.pid)[0].pid, signal.SIGKILL)
        for _ in range(20):
            assert said(server, timeout_s=2) == "hello"
        server.wait_until(lambda: len(living_children(server.process.pid)) == 2, timeout_s=10)
        assert server.interrupt() == 0


def test_serve_runs_several_gateway_processes_and_ends_them(start: Callable[..., Server], tmp_path: Path) -> None:
    registry = write_registry(tmp_path / "registry", echo_entry(MODEL))
    server = start(AVIARY_REGISTRY=str(registry), AVIARY_WORKERS="2")
    server.wait_until(lambda: said(server) == "hello", timeout_s=60)
    server.wait_until(lambda: f"Aviary serves {MODEL} on {server.url}" in server.output, timeout_s=30)
    server.wait_until(
        lambda: sum("gateway-process" in one.cmdline() for one in living_children(server.process.pid)) == 2,
        timeout_s=30,
    )
    everything = server.processes()
    assert server.interrupt() == 0
    assert not [process for process in everything if runs(process)]


def test_without_the_head_gateways_go_on_and_follow_the_pool_when_it_is_back(cluster: Cluster) -> None:
    with cluster.gateway() as alone, cluster.gateway(2) as several:
        gateways = (alone, several)
        for server in gateways:
            server.wait_until(lambda server=server: said(server) == "hello", timeout_s=60)  # type: ignore[misc]
        several.wait_until(lambda: len(living_children(several.process.pid)) == 2, timeout_s=30)
        pids = [alone.process.pid, *(child.pid for child in living_children(several.process.pid))]
        several.wait_until(lambda: all(map(cluster.has_channel, pids)), timeout_s=30)
        with streaming(alone, 2) as ends:
            cluster.head.kill()
            deadline = time.monotonic() + HEAD_AWAY_S
            while time.monotonic() < deadline:
                for server in gateways:
                    assert httpx.get(f"{server.url}/live", timeout=1).status_code == httpx.codes.OK
                    assert httpx.get(f"{server.url}/ready", timeout=1).status_code == httpx.codes.OK
                    assert said(server) == "hello"
                time.sleep(0.5)
        assert ends == [TEXT] * 2
        cluster.head.restart()
        cluster.deploy(MODEL, LATER_MODEL)
        for server in gateways:
            server.wait_until(lambda server=server: said(server, LATER_MODEL) == "hello", FOLLOWS_AGAIN_S)  # type: ignore[misc]
        assert all(psutil.pid_exists(pid) for pid in pids)


def test_a_head_that_comes_back_empty_ends_what_joined_it_and_renews_the_gateways_of_a_supervisor(
    tmp_path: Path,
) -> None:
    with RayHead() as first:
        cluster = Cluster(first, tmp_path)
        cluster.deploy(MODEL)
        serve = ("serve", f"--registry={tmp_path}")
        with cluster.gateway() as alone, cluster.running(*serve) as served, cluster.gateway(2) as several:
            for server in (alone, served, several):
                server.wait_until(lambda server=server: said(server) == "hello", timeout_s=60)  # type: ignore[misc]
            first.end()
            with RayHead(first.port) as second:
                for server in (alone, served):
                    assert server.process.wait(REPLACED_WITHIN_S) == 1
                    assert "another cluster has taken the place" in server.output
                Cluster(second, tmp_path).deploy(MODEL)
                several.wait_until(lambda: said(several) == "hello", timeout_s=REPLACED_WITHIN_S)
