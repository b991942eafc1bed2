"""The gateway over plain HTTP: bodies, headers, disconnects, overload, shutdown, metrics, and the bytes of a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.listener import BindError, bind
from gateway.settings import GatewaySettings
from tests.support.live_gateway import LiveGateway
from tests.support.scripted_pool import MODEL, TalkingWorker, entry

CHAT = "/v1/chat/completions"
JSON = "content-type: application/json"
SLOT_FREE_S = 0.25
ROOT = Path(__file__).parents[2]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]} | fields


@pytest.fixture
def worker() -> TalkingWorker:
    return TalkingWorker()


@pytest.fixture
def endless() -> TalkingWorker:
    return TalkingWorker(("x",) * 10_000, step_s=0.01)


@pytest.fixture
def gateway(worker: TalkingWorker) -> Iterator[LiveGateway]:
    with LiveGateway({"a": worker}, max_body_bytes=10_000) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: LiveGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url) as client:
        yield client


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return response.status_code, error["type"], error["code"]


def post_json(http: httpx.Client, content: bytes | Iterator[bytes]) -> httpx.Response:
    """A body that says it is JSON, whatever it is."""
    return http.post(CHAT, content=content, headers={"content-type": "application/json"})


def open_connection(gateway: LiveGateway) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def head_of(path: str, content_length: int) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "host: x", JSON, f"content-length: {content_length}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def answer_on(connection: socket.socket) -> bytes:
    """The next response, whose body is a JSON object."""
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(4096)
        assert piece, f"the connection was closed after {answer!r}"
        answer += piece
    return answer


def counted(http: httpx.Client, **labels: str) -> float:
    """Requests in the metrics that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if sample.name == "aviary_requests_total" and labels.items() <= sample.labels.items()
    )


# Errors before a request is one


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/nothing", 404, "unknown_url"),
        ("GET", CHAT, 405, "unknown_url"),
        ("DELETE", "/v1/models", 405, "unknown_url"),
        ("GET", "/v1/models/no/such", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404, "model_not_found"),
    ],
)
def test_a_wrong_url_or_method_gets_openais_error(
    http: httpx.Client, method: str, url: str, status: int, code: str
) -> None:
    assert error_of(http.request(method, url)) == (status, "invalid_request_error", code)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a":1,"a":2}', b"\xff\xfe", b"[" * 5000])
def test_a_body_that_is_not_json_gets_openais_error(http: httpx.Client, content: bytes) -> None:
    assert error_of(post_json(http, content)) == (400, "invalid_request_error", None)


def test_a_large_body_is_refused_by_what_it_says_and_by_what_it_is(http: httpx.Client) -> None:
    assert error_of(post_json(http, b" " * 10_001))[0] == 413
    assert error_of(post_json(http, iter([b" " * 4000] * 3)))[0] == 413
    assert http.post(CHAT, json=body()).status_code == 200


def test_a_body_that_claims_ten_gigabytes_is_refused_unread(gateway: LiveGateway) -> None:
    with open_connection(gateway) as connection:
        connection.sendall(head_of(CHAT, 10_000_000_000))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "headers", [{"content-encoding": "gzip", "content-type": "application/json"}, {"content-type": "text/plain"}]
)
def test_a_body_in_another_form_is_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    assert error_of(http.post(CHAT, content=b"{}", headers=headers))[0] == 415


def test_a_body_without_a_type_is_refused_and_told_which(http: httpx.Client) -> None:
    for content in (json.dumps(body()).encode(), iter([json.dumps(body()).encode()])):
        response = http.post(CHAT, content=content)
        assert error_of(response)[0] == 415
        assert "content-type: application/json" in response.json()["error"]["message"]


def test_the_type_of_a_body_that_is_not_there_does_not_matter(http: httpx.Client) -> None:
    assert http.get("/v1/models", headers={"content-type": "text/plain"}).status_code == 200


def test_a_body_that_never_ends_is_given_up() -> None:
    with LiveGateway({"a": TalkingWorker()}, body_timeout_s=0.2) as gateway, open_connection(gateway) as connection:
        connection.sendall(head_of(CHAT, 10) + b"{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("content", [b"hello\r\n\r\n", b"GET /live HTTP/1.1\r\nhost: \0\r\n\r\n"])
def test_what_is_not_http_gets_openais_error_too(gateway: LiveGateway, content: bytes) -> None:
    with open_connection(gateway) as connection:
        connection.sendall(content)
        head, _, error = answer_on(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-request-id: req_" in head
    assert json.loads(error)["error"]["type"] == "invalid_request_error"


def test_endless_headers_are_cut_off(gateway: LiveGateway) -> None:
    headers = b"GET /live HTTP/1.1\r\nhost: x\r\n" + b"x-filler: of no use\r\n" * 1_000_000
    with open_connection(gateway) as connection, pytest.raises(ConnectionError):
        connection.sendall(headers)


@pytest.mark.parametrize("start", [b"", b"GET /live HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_never_end_are_given_up(start: bytes) -> None:
    with LiveGateway({"a": TalkingWorker()}, body_timeout_s=0.2) as gateway, open_connection(gateway) as connection:
        connection.sendall(start)
        assert connection.recv(100) == b""
        with open_connection(gateway) as kept:
            for _ in range(2):
                kept.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
                assert answer_on(kept).startswith(b"HTTP/1.1 200")
                time.sleep(0.3)
            kept.sendall(b"GET /live HTTP/1.1\r\n")
            assert kept.recv(100) == b""


def test_a_large_body_in_pieces_is_no_header() -> None:
    with LiveGateway({"a": TalkingWorker()}) as gateway, open_connection(gateway) as connection:
        content = json.dumps(body(messages=[{"role": "user", "content": "x" * 500_000}])).encode()
        for _ in range(2):
            connection.sendall(head_of(CHAT, len(content)) + content)
            assert answer_on(connection).startswith(b"HTTP/1.1 200")


def test_an_unexpected_failure_is_a_plain_500(
    gateway: LiveGateway, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("internal detail")

    monkeypatch.setattr(gateway.dispatcher, "submit", fail)
    response = http.post(CHAT, json=body(), headers={"x-request-id": "find-me"})
    assert error_of(response) == (500, "server_error", None)
    assert "internal detail" not in response.text
    assert "internal detail" in caplog.text
    assert "find-me" in caplog.text
    assert counted(http, status="500", model=MODEL) == 1


def test_a_client_that_hangs_up_in_its_upload_is_counted_and_is_no_error(
    gateway: LiveGateway, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with open_connection(gateway) as connection:
        connection.sendall(head_of(CHAT, 100) + b"{")
        time.sleep(0.05)
    wait_for(lambda: counted(http, status="499", model="unknown"))
    assert counted(http, status="499", model="unknown") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_harmless_request_id_is_kept_and_any_other_replaced(http: httpx.Client) -> None:
    assert http.get("/live", headers={"x-request-id": "my-id_1"}).headers["x-request-id"] == "my-id_1"
    for offered in ("a b", "x" * 65, "é".encode(), 'a"b'):
        given = http.get(
            "/live", headers=[(b"x-request-id", offered if isinstance(offered, bytes) else offered.encode())]
        )
        assert re.fullmatch(r"req_[0-9a-f]{32}", given.headers["x-request-id"])
    assert int(http.get("/live").headers["openai-processing-ms"]) >= 0


def test_the_next_request_on_a_connection_is_answered_without_waiting_for_the_clients_kernel(
    gateway: LiveGateway,
) -> None:
    """Which acknowledges after 40 ms, unless it has something to send."""
    with open_connection(gateway) as connection:
        started_at = time.monotonic()
        for _ in range(20):
            connection.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer_on(connection).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started_at < 20 * 0.02


# Streams


def test_what_curl_prints_is_what_openai_would_print(gateway: LiveGateway, worker: TalkingWorker) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    worker.step_s = 0.1  # so that no two pieces arrive together and are sent as one
    request = json.dumps(body(stream=True, stream_options={"include_usage": True}))
    command = ["curl", "-N", "-s", "-i", f"{gateway.url}{CHAT}", "-H", "content-type: application/json", "-d", request]
    printed = subprocess.run(command, capture_output=True, timeout=10, check=True).stdout.decode()
    head, _, data = printed.partition("\r\n\r\n")
    assert "HTTP/1.1 200 OK" in head
    headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
    data = re.sub(r"chatcmpl-[0-9a-f]{32}", "ID", data)
    data = re.sub(r'"created":\d+', '"created":0', data)
    start = '{"id":"ID","object":"chat.completion.chunk","created":0,"model":"aviary/scripted","choices":['
    choices = [
        '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}',
        '{"index":0,"delta":{"content":"Hello"},"logprobs":null,"finish_reason":null}',
        '{"index":0,"delta":{"content":", "},"logprobs":null,"finish_reason":null}',
        '{"index":0,"delta":{"content":"wörld"},"logprobs":null,"finish_reason":null}',
        '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}',
    ]
    usage = '{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":2}}'
    lines = [f'{start}{choice}],"usage":null}}' for choice in choices] + [f'{start}],"usage":{usage}}}', "[DONE]"]
    assert data == "".join(f"data: {line}\n\n" for line in lines)


def test_comments_keep_a_waiting_stream_awake() -> None:
    slow = TalkingWorker(("a",), step_s=0.5)
    with LiveGateway({"a": slow}, ping_interval_s=0.1, first_output_grace_s=0) as gateway:
        text = httpx.post(gateway.url + CHAT, json=body(stream=True)).text
    assert text.startswith(": ping\n\n")
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot_at_once(endless: TalkingWorker, stream: bool) -> None:
    with LiveGateway({"a": endless}) as gateway:
        content = json.dumps(body(stream=stream)).encode()
        with open_connection(gateway) as connection:
            connection.sendall(head_of(CHAT, len(content)) + content)
            wait_for(lambda: endless.requests)
            if stream:
                connection.recv(10)
        hung_up_at = time.monotonic()
        wait_for(lambda: endless.aborted)
        assert time.monotonic() - hung_up_at <= SLOT_FREE_S
        wait_for(lambda: not gateway.call(lambda: gateway.dispatcher._jobs))


def test_a_client_that_stops_reading_is_cut_off() -> None:
    flood = TalkingWorker(("x" * 50_000,) * 10_000, step_s=0.001)
    with LiveGateway({"a": flood}, send_timeout_s=0.3) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        content = json.dumps(body(stream=True)).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect((host, int(port)))
            connection.sendall(head_of(CHAT, len(content)) + content)
            wait_for(lambda: flood.aborted, timeout_s=5)


def wait_for(condition: Any, timeout_s: float = 2.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# Load


async def test_an_onslaught_gets_answers_and_refusals_and_nothing_else() -> None:
    worker = TalkingWorker(("x",) * 3, step_s=0.01)
    with LiveGateway({"a": worker}, of=entry(ongoing=4, queued=8)) as gateway:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=gateway.url, limits=limits, timeout=20) as client:
            responses = await asyncio.gather(*(client.post(CHAT, json=body()) for _ in range(150)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 12
    for response in responses:
        if response.status_code == 429:
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert error_of(response) == (429, "service_unavailable_error", "server_is_overloaded")


# Shutdown


def test_draining_refuses_new_requests_and_finishes_open_ones() -> None:
    worker = TalkingWorker(("x",) * 20, step_s=0.02)
    with LiveGateway({"a": worker}) as gateway, httpx.Client(base_url=gateway.url) as client:
        with client.stream("POST", CHAT, json=body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            gateway.stop()
            with httpx.Client(base_url=gateway.url) as other:
                assert error_of(other.get("/ready"))[0] == 503
                refused = other.post(CHAT, json=body())
                assert error_of(refused) == (503, "service_unavailable_error", "server_is_overloaded")
                assert refused.headers["connection"] == "close"
                assert "retry-after" in refused.headers
            rest = "\n".join(lines)
        assert rest.count('"x"') == 20
        assert "[DONE]" in rest
        assert gateway.wait_stopped(3)


def test_a_stream_that_outlives_the_drain_gets_an_error_event(endless: TalkingWorker) -> None:
    with LiveGateway({"a": endless}, drain_timeout_s=0.2) as gateway:
        with httpx.stream("POST", gateway.url + CHAT, json=body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            gateway.stop()
            last = [line for line in lines if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["type"] == "service_unavailable_error"
        assert gateway.wait_stopped(3)


def test_an_idle_gateway_stops_within_a_second(gateway: LiveGateway, http: httpx.Client) -> None:
    http.get("/live")
    gateway.stop()
    assert gateway.wait_stopped(1)


def test_stopping_twice_stops_at_once(endless: TalkingWorker) -> None:
    with (
        LiveGateway({"a": endless}) as gateway,
        httpx.stream("POST", gateway.url + CHAT, json=body(stream=True)) as response,
    ):
        next(response.iter_lines())
        gateway.stop()
        gateway.stop()
        assert gateway.wait_stopped(1)


PROGRAM = """
import asyncio, sys
from gateway.app import create_app
from gateway.server import serve
from gateway.settings import GatewaySettings
from tests.support.scripted_pool import StaticPool, TalkingWorker, connect_to, model_view, pool_view, replica

async def main():
    settings = GatewaySettings.load()
    pool = StaticPool(pool_view(model_view(replica("a"))))
    app = create_app(settings, pool, connect_to({"a": TalkingWorker()}))
    return await serve(app, settings, on_started=lambda url: print(url, flush=True))

sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize("one", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0(one: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_PORT", "0")
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        wait_for(lambda: httpx.get(f"{url}/live").status_code == 200, timeout_s=10)
        process.send_signal(one)
        assert process.wait(5) == 0


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{port}: address already in use.*AVIARY_PORT"):
            bind(GatewaySettings(port=port))


# Metrics, health and logs


def test_metrics_are_read_by_prometheus_own_parser(http: httpx.Client) -> None:
    http.post(CHAT, json=body())
    http.post(CHAT, json=body(model="evil\n# label"))
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    common = (("endpoint", CHAT),)
    done = (*common, ("finish_reason", "stop"), ("model", MODEL), ("status", "200"))
    lost = (*common, ("finish_reason", "none"), ("model", "unknown"), ("status", "404"))
    assert samples["aviary_requests_total", done] == 1
    assert samples["aviary_requests_total", lost] == 1
    assert samples["aviary_rejections_total", (("model", "unknown"), ("reason", "ModelNotFoundError"))] == 1
    assert samples["aviary_generation_tokens_total", (("model", MODEL),)] == 3
    assert samples["aviary_prompt_tokens_total", (("model", MODEL),)] == 5
    assert samples["aviary_cached_tokens_total", (("model", MODEL),)] == 2
    assert samples["aviary_replicas", (("model", MODEL), ("state", "ready"))] == 1
    assert samples["aviary_worker_requests_running", (("model", MODEL), ("replica", "a"))] == 1
    for name in ("time_to_first_token", "inter_token_latency", "request_queue_time", "gateway_overhead"):
        assert families[f"aviary_{name}_seconds"].type == "histogram"
    assert "evil" not in response.text


def test_live_and_ready_say_so(http: httpx.Client) -> None:
    assert (http.get("/live").status_code, http.get("/ready").status_code) == (200, 200)
    assert (http.head("/live").status_code, http.head("/ready").status_code) == (200, 200)


def test_nothing_a_client_wrote_is_in_the_logs(
    gateway: LiveGateway, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        canary = "canary-7f3a"
        messages = [{"role": "user", "content": canary}]
        http.post(CHAT, json=body(messages=messages))
        assert http.post(CHAT, json=body(messages=messages, stream=True)).status_code == 200
        http.post(CHAT, json=body(messages=canary))
        post_json(http, f'{{"{canary}'.encode())
    ours = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("http", "asyncio"))
    )
    assert canary not in ours
    assert "Hello" not in ours


def test_the_openapi_document_describes_the_bodies(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    schema = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"model", "messages"}
    assert schema["properties"]["temperature"]["anyOf"][0]["maximum"] == 2
