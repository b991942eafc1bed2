"""Workers that die under requests, over the whole system with the echo model."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.conftest import Server, echo_entry, write_registry

MODEL = "tests/slow"
NUM_REPLICAS = 2
STEP_TIME_S = 0.05
NUM_TOKENS = 80

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    entry = echo_entry(MODEL, replicas=NUM_REPLICAS, step_time_s=STEP_TIME_S, max_batch_size=1)
    registry = write_registry(tmp_path_factory.mktemp("registry"), entry)
    server = start(AVIARY_REGISTRY=str(registry))
    server.wait_until(lambda: server.model(MODEL)["replicas"] == {"ready": NUM_REPLICAS})
    return server


@dataclass
class Client(threading.Thread):
    """Streams one completion and notes how it went."""

    server: Server
    prompt: str
    text: str = ""
    error: openai.APIError | None = None
    ended_at: float = 0.0
    began: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        try:
            with self.server.client as client:
                stream = client.completions.create(
                    model=MODEL, prompt=self.prompt, max_tokens=2 * NUM_TOKENS, stream=True
                )
                for chunk in stream:
                    self.text += chunk.choices[0].text
                    self.began.set()
        except openai.APIError as error:
            self.error = error
        self.ended_at = time.monotonic()


def test_killing_a_worker_costs_only_what_it_was_running(server: Server) -> None:
    running = [Client(server, letter * NUM_TOKENS) for letter in "ab"]
    for client in running:
        client.start()
    assert all(client.began.wait(20) for client in running)
    queued = Client(server, "c" * 10)
    queued.start()
    time.sleep(0.2)
    victims = server.worker_pids()
    assert len(victims) == NUM_REPLICAS
    killed_at = time.monotonic()
    os.kill(victims[0], signal.SIGKILL)
    for client in [*running, queued]:
        client.join(60)

    (lost,) = [client for client in running if client.error is not None]
    (kept,) = [client for client in running if client.error is None]
    assert lost.ended_at - killed_at < 1
    assert isinstance(lost.error, openai.APIError)
    assert lost.error.type == "server_error"
    assert kept.text == kept.prompt
    assert (queued.error, queued.text) == (None, "c" * 10)
    server.wait_until(lambda: server.model(MODEL)["replicas"] == {"ready": NUM_REPLICAS}, timeout_s=60)
    assert victims[0] not in server.worker_pids()


def test_a_request_that_has_no_output_yet_survives_its_worker(server: Server) -> None:
    """Each replica is prefilling one long prompt; one of them dies, its request is sent again, and nobody notices."""
    server.wait_until(lambda: server.model(MODEL)["replicas"] == {"ready": NUM_REPLICAS}, timeout_s=60)
    clients = [Client(server, letter * 2_000) for letter in "de"]
    for client in clients:
        client.start()
    running = f'aviary_requests_running{{model="{MODEL}"}} {NUM_REPLICAS}.0'
    server.wait_until(lambda: running in httpx.get(f"{server.url}/metrics").text, timeout_s=5)
    assert not any(client.began.is_set() for client in clients)
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    for client in clients:
        client.join(60)
        assert client.error is None
        assert client.text == client.prompt[: 2 * NUM_TOKENS]


def test_overload_is_answered_at_once_and_with_the_time_to_come_back(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    entry = echo_entry("tests/full", step_time_s=0.05, max_batch_size=1)
    entry["deployment_config"]["max_queued_requests"] = 1
    server = start(AVIARY_REGISTRY=str(write_registry(tmp_path / "registry", entry)))

    def complete() -> httpx.Response:
        body = {"model": "tests/full", "prompt": "x" * 60, "max_tokens": 60}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)

    responses: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: responses.append(complete())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    statuses = sorted(response.status_code for response in responses)
    assert statuses == [200, 200, 429, 429, 429, 429]
    for response in responses:
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert response.json()["error"]["code"] == "server_is_overloaded"
