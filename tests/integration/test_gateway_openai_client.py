"""What the openai client sees: replies, streams, and every error through its own exception classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from model_registry.contract import Fault, FaultKind, ReplicaState
from model_registry.schema import RegistryEntry
from tests.support.live_gateway import LiveGateway
from tests.support.scripted_pool import MODEL, ScriptedWorker, TalkingWorker, entry, model_view, pool_view, replica

pytestmark = pytest.mark.parallel

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def worker() -> TalkingWorker:
    return TalkingWorker()


@pytest.fixture
def gateway(worker: TalkingWorker) -> Iterator[LiveGateway]:
    with LiveGateway({"a": worker}) as gateway:
        yield gateway


def client_of(gateway: LiveGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10)


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with client_of(gateway) as client:
        yield client


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert reply.choices[0].message.content == "Hello, wörld"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 3, 8)
    assert reply._request_id


def test_a_text_is_gone_on_with(client: openai.OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="hello", max_tokens=2)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("Hello, ", "length")


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 3])
def test_a_streamed_chat_says_what_the_whole_one_says(client: openai.OpenAI, num_choices: int, max_tokens: int) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": HELLO, "n": num_choices, "max_tokens": max_tokens}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    for index in range(num_choices):
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(part.delta.content or "" for part in parts) == whole.choices[index].message.content
        assert parts[0].delta.role == "assistant"
        assert [part.finish_reason for part in parts if part.finish_reason] == [whole.choices[index].finish_reason]
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_clients_own_accumulator_takes_our_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, n=2) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["Hello, wörld"] * 2


async def test_the_async_client_works_both_ways(gateway: LiveGateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.completions.create(model=MODEL, prompt="hello")
        stream = await client.completions.create(model=MODEL, prompt="hello", stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == whole.choices[0].text == "Hello, wörld"


def test_models_are_listed_and_found_by_an_id_with_a_slash(client: openai.OpenAI) -> None:
    [listed] = client.models.list().data
    found = client.models.retrieve(MODEL)
    assert listed == found
    assert (found.id, found.object, found.owned_by) == (MODEL, "model", "aviary")
    assert found.model_extra is not None
    assert (found.model_extra["state"], found.model_extra["reason"]) == ("ready", None)
    assert (found.model_extra["replicas"], found.model_extra["max_model_len"]) == ({"ready": 1}, 1024)


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "no/such"}, openai.NotFoundError, "model_not_found", None),
        ({"temperature": "hot"}, openai.BadRequestError, "invalid_type", "temperature"),
        ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"n": 1_000_000}, openai.BadRequestError, "integer_above_max_value", "n"),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, openai.BadRequestError, "invalid_value", "messages[0].role"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "missing_required_parameter", "tools[0].function"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "unknown_parameter", "colour"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 8}, openai.BadRequestError, "integer_above_max_value",
         "min_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_raises_the_clients_exception(
    client: openai.OpenAI,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str,
    stream: bool,
) -> None:
    request: dict[str, Any] = {"model": MODEL, "messages": HELLO, "stream": stream} | fields
    with pytest.raises(error) as caught:
        client.chat.completions.create(**request)
    assert (caught.value.type, caught.value.code, caught.value.param) == ("invalid_request_error", code, param)
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("kind", "error", "type_", "code", "param"),
    [
        (FaultKind.CONTEXT_LENGTH_EXCEEDED, openai.BadRequestError, "invalid_request_error", "context_length_exceeded",
         "messages"),
        (FaultKind.INVALID_REQUEST, openai.BadRequestError, "invalid_request_error", "invalid_value", "stop"),
        (FaultKind.ENGINE_FAULT, openai.InternalServerError, "server_error", None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_an_early_fault_of_the_worker_keeps_its_status_also_in_a_stream(
    worker: TalkingWorker,
    client: openai.OpenAI,
    kind: FaultKind,
    error: type[openai.APIStatusError],
    type_: str,
    code: str | None,
    param: str | None,
    stream: bool,
) -> None:
    worker.pieces = ()
    worker.fault = Fault(kind=kind, message="that went wrong", param="stop")
    with pytest.raises(error) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    assert (caught.value.type, caught.value.code, caught.value.param) == (type_, code, param)


def test_a_worker_lost_in_mid_stream_is_a_typed_error(
    gateway: LiveGateway, worker: TalkingWorker, client: openai.OpenAI
) -> None:
    worker.pieces, worker.step_s = ("x",) * 1000, 0.01
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    next(stream)
    gateway.call(worker.die)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert (caught.value.type, caught.value.code) == ("server_error", "worker_lost")


def test_a_full_queue_is_a_rate_limit_error_with_the_wait() -> None:
    with (
        LiveGateway({"a": ScriptedWorker()}, of=entry(ongoing=2, queued=0), first_output_grace_s=0) as gateway,
        client_of(gateway) as client,
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True),
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    assert (caught.value.type, caught.value.code) == ("service_unavailable_error", "server_is_overloaded")
    assert caught.value.response.headers["retry-after"] == "5"
    assert caught.value.response.headers["retry-after-ms"] == "5000"


def test_a_model_that_is_still_loading_says_so() -> None:
    view = pool_view(model_view(replica("a", ReplicaState.STARTING, "loading weights: 40 of 98 MB")))
    with LiveGateway({}, view=view) as gateway, client_of(gateway) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO)
        state = client.models.retrieve(MODEL).model_extra
    assert caught.value.status_code == 503
    assert caught.value.code == "server_is_overloaded"
    assert "loading weights: 40 of 98 MB" in caught.value.message
    assert "retry-after" in caught.value.response.headers
    assert state is not None
    assert state["reason"] == "starting: loading weights: 40 of 98 MB"


def test_a_deadline_is_a_504() -> None:
    with (
        LiveGateway({"a": ScriptedWorker()}, request_timeout_s=0.1) as gateway,
        client_of(gateway) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (caught.value.status_code, caught.value.type, caught.value.code) == (504, "server_error", "timeout")


def test_a_model_is_described_in_the_registrys_words() -> None:
    plain = entry()
    described = plain.model_copy(update={"model": plain.model.model_copy(update={"model_description": "Says hello."})})
    with LiveGateway({"a": TalkingWorker()}, of=described) as gateway, client_of(gateway) as client:
        found = client.models.retrieve(MODEL)
    assert found.model_extra is not None
    assert found.model_extra["description"] == "Says hello."


@pytest.mark.parametrize("place", ["generation", "model_config"])
def test_a_prompt_of_too_many_words_is_refused_before_it_waits(place: str) -> None:
    limited = entry(max_input_words=3) if place == "generation" else _with_older_limit(3)
    worker = TalkingWorker()
    with LiveGateway({"a": worker}, of=limited) as gateway, client_of(gateway) as client:
        history: list[ChatCompletionMessageParam] = [{"role": "user", "content": "a long one of before"}, *HELLO]
        assert client.chat.completions.create(model=MODEL, messages=history).choices
        num_requests = len(worker.requests)
        with pytest.raises(openai.BadRequestError) as chat:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "one two three four"}])
        with pytest.raises(openai.BadRequestError) as text:
            client.completions.create(model=MODEL, prompt="one two three four")
        assert (chat.value.code, chat.value.param) == ("context_length_exceeded", "messages")
        assert (text.value.code, text.value.param) == ("context_length_exceeded", "prompt")
        assert len(worker.requests) == num_requests


def _with_older_limit(max_input_words: int) -> RegistryEntry:
    plain = entry()
    return plain.model_copy(update={"model": plain.model.model_copy(update={"max_input_words": max_input_words})})
