"""Several gateway processes on one address, everything but Ray: as clients, load balancers and Prometheus see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import living_children
from tests.support.scripted_pool import MODEL

ROOT = Path(__file__).parents[2]
NUM_PROCESSES = 2
NUM_STREAMS = 16
"""One of two processes gets none of them once in 32,768 times."""
NUM_KILLS = 5
START_S = 30
NO_TLS = False
"""Saves each new client the reading of all certificates."""
NUM_WORDS = 80


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


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[Gateways]:
    settings = {"AVIARY_PORT": "0", "AVIARY_WORKERS": str(NUM_PROCESSES), "TEST_SERVING": str(tmp_path)}
    environment = {**os.environ, **settings}
    command = [sys.executable, "-m", "tests.support.supervisor"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        gateways = Gateways(parent.stdout.readline().strip(), parent, tmp_path)
        try:
            gateways.until_all_serve()
            yield gateways
        finally:
            parent.kill()


class Stream(threading.Thread):
    """One streamed completion of 80 words in 4 s, over a connection of its own."""

    def __init__(self, gateways: Gateways) -> None:
        super().__init__(daemon=True)
        self.port = 0
        self.status = 0
        self.text = ""
        self.error: httpx.HTTPError | None = None
        self.began = threading.Event()
        self._url = gateways.url

    def run(self) -> None:
        body = {"model": MODEL, "prompt": "hello", "stream": True, "max_tokens": NUM_WORDS}
        try:
            url = f"{self._url}/v1/completions"
            with httpx.stream("POST", url, json=body, timeout=30, verify=NO_TLS) as response:
                self.port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
                self.status = response.status_code
                for line in response.iter_lines():
                    self.text += f"{line}\n"
                    self.began.set()
        except httpx.HTTPError as error:
            self.error = error

    @property
    def is_whole(self) -> bool:
        return self.status == httpx.codes.OK and self.text.rstrip().endswith("data: [DONE]")


def open_streams(gateways: Gateways, count: int) -> list[Stream]:
    streams = [Stream(gateways) for _ in range(count)]
    for stream in streams:
        stream.start()
    assert all(stream.began.wait(10) for stream in streams)
    return streams


def streams_on_every_process(gateways: Gateways) -> dict[int, list[Stream]]:
    """By process: at least one stream on each."""
    by_pid: dict[int, list[Stream]] = {}
    streams, pids = open_streams(gateways, NUM_STREAMS), gateways.clients()
    for stream in streams:
        by_pid.setdefault(pids[stream.port], []).append(stream)
    assert by_pid.keys() == gateways.pids
    return by_pid


def complete(gateways: Gateways) -> httpx.Response:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    return httpx.post(f"{gateways.url}/v1/completions", json=body, verify=NO_TLS)


def test_every_process_gets_connections_and_a_scrape_of_any_shows_all(gateways: Gateways) -> None:
    by_pid = streams_on_every_process(gateways)
    num_streams = sum(map(len, by_pid.values()))
    time.sleep(0.6)  # what another process shows of the present is at most so old
    for _ in range(6):
        assert gateways.scraped("aviary_requests_running", model=MODEL) == num_streams
        assert gateways.scraped("aviary_replicas", model=MODEL, state="ready") == 1
    for stream in [one for some in by_pid.values() for one in some]:
        stream.join(10)
        assert stream.is_whole
    time.sleep(0.6)
    for _ in range(6):
        assert gateways.scraped("aviary_requests_total", model=MODEL, status="200") == num_streams
        assert gateways.scraped("aviary_generation_tokens_total", model=MODEL) == NUM_WORDS * num_streams
        assert gateways.scraped("aviary_time_to_first_token_seconds_count", model=MODEL) == num_streams
        assert gateways.scraped("aviary_requests_running", model=MODEL) == 0


def test_what_a_killed_process_counted_stays_and_what_it_had_open_does_not(gateways: Gateways) -> None:
    for _ in range(10):
        assert complete(gateways).status_code == httpx.codes.OK
    by_pid = streams_on_every_process(gateways)
    victim, lost = min(by_pid.items())
    os.kill(victim, signal.SIGKILL)
    for stream in lost:
        stream.join(5)
        assert stream.error is not None
    for stream in [one for pid, some in by_pid.items() if pid != victim for one in some]:
        stream.join(10)
        assert stream.is_whole
    gateways.until_all_serve(without=victim)
    time.sleep(0.6)
    kept = sum(len(some) for pid, some in by_pid.items() if pid != victim)
    for _ in range(6):
        assert gateways.scraped("aviary_requests_total", model=MODEL) == 10 + kept
        assert gateways.scraped("aviary_requests_running", model=MODEL) == 0


def test_no_connection_is_refused_while_processes_are_killed(gateways: Gateways) -> None:
    """Each kill costs what the process had open, and nothing that comes after it; one that is all there is, too."""
    stop = threading.Event()
    refused: list[httpx.ConnectError] = []
    served = 0

    def connect() -> int:
        count = 0
        while not stop.is_set():
            try:
                count += httpx.get(f"{gateways.url}/live", timeout=30, verify=NO_TLS).status_code == httpx.codes.OK
            except httpx.ConnectError as error:
                refused.append(error)
            except httpx.HTTPError:
                pass  # it was open in the process that was killed
        return count

    with ThreadPoolExecutor(4) as clients:
        counts = [clients.submit(connect) for _ in range(4)]
        try:
            for _ in range(NUM_KILLS):
                victim = min(gateways.pids)
                os.kill(victim, signal.SIGKILL)
                gateways.until_all_serve(without=victim)
            for victim in gateways.pids:
                os.kill(victim, signal.SIGKILL)
            gateways.until_all_serve()
        finally:
            stop.set()
        served = sum(count.result() for count in counts)
    assert refused == []
    assert served > 0


def test_new_connections_do_not_wait_for_a_process_that_hangs(gateways: Gateways) -> None:
    os.kill(min(gateways.pids), signal.SIGSTOP)
    for _ in range(NUM_STREAMS):
        assert httpx.get(f"{gateways.url}/ready", timeout=1, verify=NO_TLS).status_code == httpx.codes.OK


def test_sigterm_drains_all_processes(gateways: Gateways) -> None:
    by_pid = streams_on_every_process(gateways)
    gateways.parent.send_signal(signal.SIGTERM)
    for pid in by_pid:
        os.kill(pid, signal.SIGTERM)  # as a service manager does that signals the whole group
    wait_for(
        lambda: httpx.get(f"{gateways.url}/ready", verify=NO_TLS).status_code == httpx.codes.SERVICE_UNAVAILABLE, 1
    )
    for _ in range(10):
        assert httpx.get(f"{gateways.url}/ready", verify=NO_TLS).status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert complete(gateways).status_code == httpx.codes.SERVICE_UNAVAILABLE
    for stream in [one for some in by_pid.values() for one in some]:
        stream.join(10)
        assert stream.is_whole
    assert gateways.parent.wait(5) == 0


def test_a_second_signal_ends_all_processes_at_once(gateways: Gateways) -> None:
    streams = open_streams(gateways, 4)
    pids = gateways.pids
    gateways.parent.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert gateways.parent.poll() is None
    gateways.parent.send_signal(signal.SIGINT)
    assert gateways.parent.wait(3) == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not any(stream.is_whole for stream in streams)


def test_nothing_of_a_supervisor_is_left_when_it_ends(gateways: Gateways) -> None:
    (folder,) = {Path(one.environ()["PROMETHEUS_MULTIPROC_DIR"]) for one in gateways.processes}
    assert folder.stat().st_mode & 0o777 == 0o700
    gateways.parent.send_signal(signal.SIGTERM)
    assert gateways.parent.wait(10) == 0
    assert not folder.exists()


def test_the_address_is_free_at_once_after_a_supervisor_was_killed(gateways: Gateways) -> None:
    gateways.parent.kill()
    gateways.parent.wait()
    port = gateways.url.rpartition(":")[2]
    deadline = time.monotonic() + 1
    environment = {**os.environ, "AVIARY_PORT": port, "AVIARY_WORKERS": "1"}
    code = "from gateway.listener import bind; from gateway.settings import GatewaySettings; bind(GatewaySettings())"
    while subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False).returncode:
        assert time.monotonic() < deadline
