"""Several gateway processes on one address, everything but Ray: as clients, load balancers and Prometheus see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.gateways import (
    NO_TLS,
    ROOT,
    Gateways,
    open_streams,
    running_gateways,
    streams_on_every_process,
    wait_for,
)
from tests.support.scripted_pool import MODEL

NUM_WORDS = 80
"""In what the model says to everybody, in 4 s."""
NUM_STREAMS = 16
"""One of two processes gets none of them once in 32,768 times."""
NUM_KILLS = 5


@pytest.fixture
def gateways(tmp_path: Path) -> Iterator[Gateways]:
    with running_gateways(tmp_path) as gateways:
        yield gateways


def complete(gateways: Gateways) -> httpx.Response:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 1}
    return httpx.post(f"{gateways.url}/v1/completions", json=body, verify=NO_TLS)


def test_every_process_gets_connections_and_a_scrape_of_any_shows_all(gateways: Gateways) -> None:
    by_pid = streams_on_every_process(gateways, NUM_STREAMS)
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
    by_pid = streams_on_every_process(gateways, NUM_STREAMS)
    wait_for(lambda: gateways.scraped("aviary_requests_running", model=MODEL) == NUM_STREAMS, 2)
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
    by_pid = streams_on_every_process(gateways, NUM_STREAMS)
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
