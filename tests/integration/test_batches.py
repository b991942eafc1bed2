"""/v1/files and /v1/batches as the openai client sees them: a real gateway, a real worker with the echo engine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest
from openai.types import Batch

from gateway import offline
from gateway.channel import GrpcChannel
from gateway.protocol.batches import BatchStatus
from model_registry.schema import RegistryEntry
from tests.support.gateways import running_gateways, wait_for
from tests.support.live_gateway import LiveGateway
from tests.support.live_worker import LiveWorker
from tests.support.scripted_pool import MODEL as SCRIPTED
from tests.support.scripted_pool import SECRET, pool_view
from workers.initializers import build_engine, initializer_for

MODEL = "aviary/echo"
CHAT: Final = "/v1/chat/completions"
DONE = {"completed", "failed", "expired", "cancelled"}
Json = dict[str, Any]


def entry_of(*, slots: int = 8, step_time_s: float = 0.0) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": MODEL,
                "initialization": {"initializer": {"type": "Echo", "step_time_s": step_time_s}},
                "generation": {"max_model_len": 256, "max_batch_size": slots},
            }
        }
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[LiveWorker, RegistryEntry]]:
    entry = entry_of()
    with LiveWorker(build_engine(entry, initializer_for(entry).load(entry, lambda line: None)), SECRET) as worker:
        yield worker, entry


def serving(worker: tuple[LiveWorker, RegistryEntry], folder: Path, **settings: Any) -> LiveGateway:
    live, entry = worker
    return LiveGateway({}, view=pool_view(live.view(entry)), connect=GrpcChannel, files=folder / "files", **settings)


@pytest.fixture
def gateway(worker: tuple[LiveWorker, RegistryEntry], tmp_path: Path) -> Iterator[LiveGateway]:
    with serving(worker, tmp_path) as gateway:
        yield gateway


def client_of(gateway: LiveGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10)


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with client_of(gateway) as client:
        yield client


def chat_line(name: str, text: str = "hello", **fields: Any) -> Json:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]} | fields
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body}


def as_lines(*lines: Json) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def started(client: openai.OpenAI, content: bytes, endpoint: Any = CHAT, **fields: Any) -> Batch:
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


def ended(client: openai.OpenAI, batch: Batch, timeout_s: float = 10.0) -> Batch:
    wait_for(lambda: client.batches.retrieve(batch.id).status in DONE, timeout_s)
    return client.batches.retrieve(batch.id)


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Json]:
    """By their custom ids, each of which is there once."""
    assert file_id is not None
    lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    return by_id


def test_a_batch_is_answered_as_its_requests_would_be(client: openai.OpenAI) -> None:
    names = [f"request-{number}" for number in range(20)]
    batch = started(client, as_lines(*(chat_line(name, name) for name in names)), metadata={"of": "a test"})
    assert (batch.object, batch.status, batch.completion_window) == ("batch", "validating", "24h")
    batch = ended(client, batch)
    assert (batch.status, batch.errors, batch.error_file_id, batch.model) == ("completed", None, None, MODEL)
    assert batch.metadata == {"of": "a test"}
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    answers = lines_of(client, batch.output_file_id)
    assert list(answers) == names, "in the order of the input"
    alone = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": names[7]}])
    answer = answers[names[7]]
    assert answer["error"] is None
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["request_id"].startswith("req_")
    assert answer["response"]["body"]["choices"] == alone.to_dict()["choices"]
    assert batch.usage is not None
    assert alone.usage is not None
    assert batch.usage.total_tokens == sum(one["response"]["body"]["usage"]["total_tokens"] for one in answers.values())
    moments = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert all(moments)
    assert list(moments) == sorted(moments, key=lambda moment: moment or 0)


@pytest.mark.parametrize(
    ("endpoint", "body", "is_answer"),
    [
        ("/v1/completions", {"prompt": "hello"}, lambda body: body["object"] == "text_completion"),
        ("/v1/responses", {"input": "hello"}, lambda body: body["status"] == "completed"),
        ("/v1/embeddings", {"input": ["a", "b"]}, lambda body: len(body["data"]) == 2),
    ],
)
def test_batches_are_about_every_endpoint(
    client: openai.OpenAI, endpoint: str, body: Json, is_answer: Callable[[Json], bool]
) -> None:
    line = {"custom_id": "one", "method": "POST", "url": endpoint, "body": {"model": MODEL, **body}}
    batch = ended(client, started(client, as_lines(line), endpoint))
    assert is_answer(lines_of(client, batch.output_file_id)["one"]["response"]["body"])
    assert batch.usage is not None
    assert batch.usage.input_tokens > 0


def test_a_request_that_is_wrong_has_its_own_error(client: openai.OpenAI) -> None:
    lines = (chat_line("right"), chat_line("wrong", temperature=9), chat_line("streamed", stream=True))
    batch = ended(client, started(client, as_lines(*lines)))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}
    assert list(lines_of(client, batch.output_file_id)) == ["right"]
    errors = lines_of(client, batch.error_file_id)
    assert errors["wrong"]["response"]["status_code"] == 400
    assert errors["wrong"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["streamed"]["response"]["body"]["error"]["param"] == "stream"


def test_a_file_that_is_no_list_of_requests_fails_with_the_numbers_of_its_lines(client: openai.OpenAI) -> None:
    unknown = chat_line("c", model="no/such-model")
    content = as_lines(chat_line("a")) + b"{\n\n" + as_lines(chat_line("a"), unknown, chat_line("d") | {"url": "/x"})
    batch = ended(client, started(client, content))
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert batch.errors is not None
    assert [(error.line, error.code) for error in batch.errors.data or ()] == [
        (2, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "model_not_found"),
        (6, "mismatched_url"),
    ]


def test_files_are_kept_listed_read_and_deleted(client: openai.OpenAI, tmp_path: Path) -> None:
    before = int(time.time())
    first, second, third = (
        client.files.create(
            file=(f"../{name}.jsonl", name.encode()),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        for name in "abc"
    )
    assert (first.object, first.bytes, first.filename, first.purpose) == ("file", 1, "a.jsonl", "batch")
    assert first.status == "processed"
    assert first.created_at >= before
    assert first.expires_at == first.created_at + 3600
    assert client.files.retrieve(first.id) == first
    reply = client.files.content(second.id)
    assert reply.content == b"b"
    assert [file.id for file in client.files.list(limit=1)] == [third.id, second.id, first.id], "page by page"
    assert [file.id for file in client.files.list(order="asc", after=first.id, purpose="batch")] == [
        second.id,
        third.id,
    ]
    assert client.files.list(purpose="batch_output").data == []
    assert client.files.delete(second.id).deleted
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            gone(second.id)
    stored = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o600}
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (tmp_path / "files" / "content").iterdir()) == sorted([first.id, third.id])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": "user_data"}, "purpose", "unsupported_value"),
        ({"purpose": "x"}, "purpose", "invalid_value"),
        ({}, "purpose", "missing_required_parameter"),
        ({"purpose": "batch", "colour": "red"}, "colour", "unknown_parameter"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after.anchor", "missing_required_parameter"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after.seconds",
            "integer_below_min_value",
        ),
    ],
)
def test_what_is_wrong_with_an_upload_is_named(
    gateway: LiveGateway, fields: Mapping[str, str], param: str, code: str
) -> None:
    reply = httpx.post(f"{gateway.url}/v1/files", data=fields, files={"file": ("a.jsonl", b"{}")})
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == (param, code)


def test_an_upload_without_a_file_or_from_another_site_is_refused(gateway: LiveGateway) -> None:
    url = f"{gateway.url}/v1/files"
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    form = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    assert httpx.post(url, content=form, headers=boundary).json()["error"]["param"] == "file"
    assert httpx.post(url, content=b"nothing", headers=boundary).status_code == 400
    assert httpx.post(url, json={"purpose": "batch"}).status_code == 415
    from_elsewhere = httpx.post(
        url, data={"purpose": "batch"}, files={"file": b"{}"}, headers={"origin": "http://elsewhere.example"}
    )
    assert from_elsewhere.status_code == 415


def test_a_client_that_hangs_up_in_its_upload_leaves_nothing(
    gateway: LiveGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def half() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
        raise ConnectionError

    with pytest.raises(ConnectionError):
        httpx.post(
            f"{gateway.url}/v1/files", content=half(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
    assert httpx.get(f"{gateway.url}/v1/files").json()["data"] == []
    assert list((tmp_path / "files" / "content").iterdir()) == []
    assert "failed" not in caplog.text


def test_a_method_that_is_not_allowed_is_told_all_that_are(gateway: LiveGateway) -> None:
    assert httpx.put(f"{gateway.url}/v1/files").headers["allow"] == "GET, POST"
    assert httpx.put(f"{gateway.url}/v1/files/file-a").headers["allow"] == "DELETE, GET"


def test_files_and_their_sum_are_bounded(worker: tuple[LiveWorker, RegistryEntry], tmp_path: Path) -> None:
    with (
        serving(worker, tmp_path, max_file_bytes=700_000, files_max_bytes=1024 * 1024) as gateway,
        client_of(gateway) as client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=b"x" * 700_001, purpose="batch")
        assert caught.value.status_code == 413
        kept = client.files.create(file=b"x" * 700_000, purpose="batch")
        with pytest.raises(openai.BadRequestError, match="no room") as full:
            client.files.create(file=b"x" * 700_000, purpose="batch")
        assert full.value.code == "storage_limit_exceeded"
        assert [path.name for path in (tmp_path / "files" / "content").iterdir()] == [kept.id]
        client.files.delete(kept.id)
        client.files.create(file=b"x" * 700_000, purpose="batch")


def test_without_a_folder_both_say_what_to_set(worker: tuple[LiveWorker, RegistryEntry]) -> None:
    live, entry = worker
    with (
        LiveGateway({}, view=pool_view(live.view(entry)), connect=GrpcChannel) as gateway,
        client_of(gateway) as client,
    ):
        for ask in (
            lambda: client.files.create(file=b"{}", purpose="batch"),
            client.files.list,
            client.batches.list,
            lambda: client.batches.create(input_file_id="f", endpoint=CHAT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError, match="AVIARY_FILES"):
                ask()


def test_batches_are_listed_and_what_does_not_exist_is_not_found(client: openai.OpenAI) -> None:
    batches = [ended(client, started(client, as_lines(chat_line("a")))) for _ in range(3)]
    assert list(client.batches.list(limit=1)) == batches[::-1]
    assert client.batches.list(after=batches[1].id).data == [batches[0]]
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        client.batches.retrieve("batch_x")
    with pytest.raises(openai.NotFoundError, match="No batch found"):
        client.batches.cancel("batch_x")
    with pytest.raises(openai.NotFoundError, match="No such File object") as caught:
        client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(input_file_id="x", endpoint="/v1/moderations", completion_window="24h")
    assert refused.value.param == "endpoint"
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(batches[0].id)
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        client.batches.create(input_file_id=batches[0].output_file_id or "", endpoint=CHAT, completion_window="24h")


def test_what_batches_did_is_counted(gateway: LiveGateway, client: openai.OpenAI) -> None:
    ended(client, started(client, as_lines(chat_line("a"), chat_line("b", temperature=9))))

    def scraped(line: str) -> bool:
        return line in httpx.get(f"{gateway.url}/metrics").text

    assert scraped('aviary_batch_lines_total{outcome="completed"} 1.0')
    assert scraped('aviary_batch_lines_total{outcome="failed"} 1.0')
    wait_for(lambda: scraped(f'aviary_batches{{state="{BatchStatus.COMPLETED}"}} 1.0'), 5)
    assert not scraped("aviary_requests_total{"), "no client has asked"


# Clients and batches beside each other


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[LiveGateway]:
    """8 sequences at once, each of which takes a quarter of a second and more."""
    entry = entry_of(slots=8, step_time_s=0.02)
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda line: None))
    with LiveWorker(engine, SECRET) as worker, serving((worker, entry), tmp_path) as gateway:
        yield gateway


def counts_of(client: openai.OpenAI, batch: Batch) -> tuple[int, int, int]:
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts is not None
    return counts.total, counts.completed, counts.failed


def test_clients_are_answered_before_lines_that_were_not_sent_yet(slow: LiveGateway) -> None:
    with client_of(slow) as client:
        batch = started(client, as_lines(*(chat_line(str(number)) for number in range(200))))
        wait_for(lambda: counts_of(client, batch)[1] > 0, 10)

        def ask(_: int) -> float:
            begun = time.monotonic()
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
            return time.monotonic() - begun

        alone_s = ask(0)
        before = counts_of(client, batch)[1]
        with ThreadPoolExecutor(8) as clients:
            latencies_s = list(clients.map(ask, range(24)))
        assert max(latencies_s) < 3 * alone_s, "three rounds of eight, each as if there was no batch"
        assert counts_of(client, batch)[1] - before <= 8, "what ran already, and not a line more"
        assert client.batches.retrieve(batch.id).status == "in_progress"
        client.batches.cancel(batch.id)
        ended(client, batch)


def test_a_cancelled_batch_keeps_what_was_answered_and_says_so_of_the_rest(slow: LiveGateway) -> None:
    with client_of(slow) as client:
        names = [str(number) for number in range(200)]
        batch = started(client, as_lines(*map(chat_line, names)))
        wait_for(lambda: counts_of(client, batch)[1] > 0, 10)
        with pytest.raises(openai.BadRequestError, match="not over"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended(client, batch, 2)
        assert batch.status == "cancelled"
        assert batch.cancelled_at
        answered, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
        assert sorted([*answered, *errors]) == sorted(names)
        assert {error["error"]["code"] for error in errors.values()} == {"batch_cancelled"}
        assert counts_of(client, batch) == (200, len(answered), len(errors))
        wait_for(lambda: slow.call(lambda: slow.dispatcher.loads[0][1].running) == {"live": 0}, 1)
        client.files.delete(batch.input_file_id)


def test_a_batch_whose_time_is_over_keeps_what_was_answered(slow: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "COMPLETION_WINDOW_S", 2)
    with client_of(slow) as client:
        batch = ended(client, started(client, as_lines(*(chat_line(str(number)) for number in range(200)))))
        assert batch.status == "expired"
        answered, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
        assert answered
        assert len(answered) + len(errors) == 200
        assert {error["error"]["code"] for error in errors.values()} == {"batch_expired"}


def test_a_batch_goes_on_after_a_gateway_that_drained(
    worker: tuple[LiveWorker, RegistryEntry], slow: LiveGateway, tmp_path: Path
) -> None:
    names = [str(number) for number in range(60)]
    with client_of(slow) as client:
        batch = started(client, as_lines(*map(chat_line, names)))
        wait_for(lambda: counts_of(client, batch)[1] > 0, 10)
    slow.stop()
    assert slow.wait_stopped(5)
    live, entry = worker
    with serving((live, entry), tmp_path) as gateway, client_of(gateway) as client:
        assert counts_of(client, batch)[1] >= 6, "what ran was finished"
        batch = ended(client, batch, 5)
        assert batch.status == "completed"
        assert sorted(lines_of(client, batch.output_file_id)) == sorted(names)


def test_every_line_has_one_result_though_the_gateways_were_killed_in_the_middle(tmp_path: Path) -> None:
    entry = entry_of(slots=8, step_time_s=0.02)
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda line: None))
    names = [str(number) for number in range(80)]
    lines = as_lines(*(chat_line(name, name, model=SCRIPTED) for name in names))
    with (
        LiveWorker(engine, SECRET) as worker,
        running_gateways(
            tmp_path,
            AVIARY_FILES=str(tmp_path / "files"),
            TEST_WORKER=worker.address,
            TEST_ONGOING="8",
            TEST_LEASE_S="1",
        ) as gateways,
        openai.OpenAI(base_url=f"{gateways.url}/v1", api_key="none", max_retries=5, timeout=10) as client,
    ):
        batch = started(client, lines)
        for num_done in (10, 40):
            wait_for(lambda num_done=num_done: counts_of(client, batch)[1] >= num_done, 10)  # type: ignore[misc]
            for pid in gateways.pids:
                os.kill(pid, signal.SIGKILL)
            gateways.until_all_serve()
            if num_done == 10:
                assert counts_of(client, batch)[1] < len(names)
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert counts_of(client, batch) == (80, 80, 0)
        answers = lines_of(client, batch.output_file_id)
        assert list(answers) == names
        assert all(
            name in answer["response"]["body"]["choices"][0]["message"]["content"] for name, answer in answers.items()
        )
