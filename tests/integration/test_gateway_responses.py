"""/v1/responses as the openai client sees it: replies, streams, conversations that are kept, and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from model_registry.contract import ChatMessage, ChatPrompt, ConstraintKind, Fault, FaultKind
from tests.support.gateways import wait_for
from tests.support.live_gateway import LiveGateway
from tests.support.scripted_pool import MODEL, ScriptedWorker, TalkingWorker

pytestmark = pytest.mark.parallel

HELLO: dict[str, Any] = {"model": MODEL, "input": "hello"}
OF_NO_TIME = {"id", "created_at", "completed_at", "output"}


@pytest.fixture
def worker() -> TalkingWorker:
    return TalkingWorker()


@pytest.fixture
def gateway(worker: TalkingWorker, tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway({"a": worker}, responses_store=tmp_path / "responses.db") as gateway:
        yield gateway


def client_of(gateway: LiveGateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10)


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[openai.OpenAI]:
    with client_of(gateway) as client:
        yield client


def messages_of(worker: ScriptedWorker) -> tuple[ChatMessage, ...]:
    """What the last request came to."""
    prompt = worker.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


def test_a_text_is_answered(client: openai.OpenAI) -> None:
    reply = client.responses.create(**HELLO, metadata={"of": "a test"})
    assert (reply.output_text, reply.status, reply.error) == ("Hello, wörld", "completed", None)
    assert reply.id.startswith("resp_")
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.total_tokens) == (5, 3, 8)
    assert (reply.temperature, reply.tool_choice, reply.metadata) == (1.0, "auto", {"of": "a test"})
    assert reply._request_id


def test_items_and_instructions_come_to_messages(client: openai.OpenAI, worker: TalkingWorker) -> None:
    client.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Is it raining?"}]},
            {"role": "assistant", "content": "Where?"},
            {"role": "user", "content": "In Oslo."},
        ],
    )
    assert [(message.role, message.content) for message in messages_of(worker)] == [
        ("system", "Be brief."), ("user", "Is it raining?"), ("assistant", "Where?"), ("user", "In Oslo."),
    ]  # fmt: skip


def test_the_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    reply = client.responses.create(**HELLO, max_output_tokens=2)
    assert (reply.output_text, reply.status) == ("Hello, ", "incomplete")
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(("max_output_tokens", "end"), [(2, "response.incomplete"), (3, "response.completed")])
def test_a_streamed_response_says_what_the_whole_one_says(
    client: openai.OpenAI, worker: TalkingWorker, max_output_tokens: int, end: str
) -> None:
    worker.step_s = 0.01
    whole = client.responses.create(**HELLO, max_output_tokens=max_output_tokens)
    events: list[Any] = list(client.responses.create(**HELLO, max_output_tokens=max_output_tokens, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == end
    final = events[-1].response
    assert final.model_dump(exclude=OF_NO_TIME) == whole.model_dump(exclude=OF_NO_TIME)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == whole.output_text
    assert len(deltas) > 1


def test_the_clients_own_accumulator_takes_our_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(**HELLO) as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert texts[-1] == final.output_text == "Hello, wörld"


async def test_the_async_client_works_both_ways(gateway: LiveGateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.responses.create(**HELLO)
        async with client.responses.stream(**HELLO) as stream:
            final = await stream.get_final_response()
        kept = await client.responses.retrieve(final.id)
    assert whole.output_text == final.output_text == kept.output_text == "Hello, wörld"


class Answer(BaseModel):
    text: str


def test_a_parsed_answer_is_asked_for_by_its_schema(client: openai.OpenAI, worker: TalkingWorker) -> None:
    worker.pieces = ('{"text":', ' "yes"}')
    parsed = client.responses.parse(**HELLO, text_format=Answer)
    assert parsed.output_parsed == Answer(text="yes")
    again: list[Any] = [*parsed.output]
    client.responses.create(model=MODEL, input=again, store=False)
    constraint = worker.requests[0].sampling.constraint
    assert constraint is not None
    assert (constraint.kind, constraint.param) == (ConstraintKind.JSON_SCHEMA, "text.format.schema")
    assert json.loads(constraint.source)["properties"] == {"text": {"title": "Text", "type": "string"}}


def test_a_schema_that_says_names_may_be_any_is_told_as_it_came(client: openai.OpenAI, worker: TalkingWorker) -> None:
    """As zod writes it; no grammar can say it, and none has to."""
    schema: dict[str, Any] = {"type": "object", "propertyNames": {"type": "string"}}
    reply = client.responses.create(**HELLO, text={"format": {"type": "json_schema", "name": "a", "schema": schema}})
    constraint = worker.requests[-1].sampling.constraint
    assert constraint is not None
    assert constraint.source == '{"type": "object"}'
    assert reply.to_dict()["text"]["format"]["schema"] == schema


def test_any_json_object_may_be_asked_for(client: openai.OpenAI, worker: TalkingWorker) -> None:
    reply = client.responses.create(**HELLO, text={"format": {"type": "json_object"}})
    constraint = worker.requests[-1].sampling.constraint
    assert constraint is not None
    assert constraint.source == '{"type": "object"}'
    assert reply.text is not None
    assert reply.text.format is not None
    assert reply.text.format.type == "json_object"


def test_a_conversation_goes_on_from_what_is_kept(client: openai.OpenAI, worker: TalkingWorker) -> None:
    first = client.responses.create(**HELLO, instructions="Be kind.")
    with client.responses.stream(model=MODEL, input="and now?", previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    client.responses.create(model=MODEL, input="again", previous_response_id=second.id)
    assert [(message.role, message.content) for message in messages_of(worker)] == [
        ("user", "hello"), ("assistant", "Hello, wörld"), ("user", "and now?"), ("assistant", "Hello, wörld"),
        ("user", "again"),
    ]  # fmt: skip
    assert second.previous_response_id == first.id


def test_the_output_can_be_sent_back_as_it_came_or_by_reference(client: openai.OpenAI, worker: TalkingWorker) -> None:
    reply = client.responses.create(**HELLO, include=["message.output_text.logprobs"])
    reference = {"type": "item_reference", "id": reply.output[0].id or ""}
    again: list[Any] = [*reply.output, {"role": "user", "content": "Again?"}, reference]
    client.responses.create(model=MODEL, input=again, store=False)
    assert [(message.role, message.content) for message in messages_of(worker)] == [
        ("assistant", "Hello, wörld"), ("user", "Again?"), ("assistant", "Hello, wörld"),
    ]  # fmt: skip


def test_a_response_is_read_listed_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(**HELLO)
    second = client.responses.create(model=MODEL, input="and now?", previous_response_id=first.id)
    assert client.responses.retrieve(second.id) == second
    newest = client.responses.input_items.list(second.id, limit=2)
    listed = [item.to_dict()["content"] for item in newest]
    assert [content[0]["text"] for content in listed] == ["and now?", "Hello, wörld", "hello"]  # type: ignore[index]
    oldest = client.responses.input_items.list(second.id, limit=1, order="asc")
    assert oldest.has_more
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(second.id)
    assert client.responses.retrieve(first.id) == first


def test_a_response_that_is_not_to_be_kept_is_not(client: openai.OpenAI) -> None:
    reply = client.responses.create(**HELLO, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)


def test_only_background_responses_can_be_cancelled(client: openai.OpenAI) -> None:
    reply = client.responses.create(**HELLO)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(reply.id)


def test_without_a_store_everything_but_reading_again_works() -> None:
    with LiveGateway({"a": TalkingWorker()}) as gateway, client_of(gateway) as client:
        reply = client.responses.create(**HELLO, store=True)
        assert reply.to_dict()["store"] is False
        with pytest.raises(openai.BadRequestError, match="AVIARY_RESPONSES_STORE") as caught:
            client.responses.create(**HELLO, previous_response_id=reply.id)
        with pytest.raises(openai.NotFoundError, match="AVIARY_RESPONSES_STORE"):
            client.responses.retrieve(reply.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "no/such"}, openai.NotFoundError, "model_not_found", None),
        ({"temperature": 3}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"background": True}, openai.BadRequestError, "unsupported_parameter", "background"),
        ({"input": [{"role": "robot", "content": ""}]}, openai.BadRequestError, "invalid_value", "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, openai.NotFoundError, None, "input"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "previous_response_not_found",
         "previous_response_id"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "unknown_parameter", "colour"),
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
    with pytest.raises(error) as caught:
        client.responses.create(**(HELLO | {"stream": stream} | fields))
    assert (caught.value.type, caught.value.code, caught.value.param) == ("invalid_request_error", code, param)


@pytest.mark.parametrize("stream", [False, True])
def test_an_early_fault_names_the_input(worker: TalkingWorker, client: openai.OpenAI, stream: bool) -> None:
    worker.pieces = ()
    worker.fault = Fault(kind=FaultKind.CONTEXT_LENGTH_EXCEEDED, message="too long")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**HELLO, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


def test_a_worker_lost_in_mid_stream_is_a_typed_error_and_a_failed_response(
    gateway: LiveGateway, worker: TalkingWorker, client: openai.OpenAI
) -> None:
    worker.pieces, worker.step_s = ("x",) * 1000, 0.01
    stream = client.responses.create(**HELLO, stream=True)
    begun: Any = next(stream)
    next(event for event in stream if event.type == "response.output_text.delta")
    gateway.call(worker.die)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert (caught.value.type, caught.value.code) == ("server_error", "worker_lost")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.response.id)


def test_a_response_whose_client_left_is_aborted_and_not_kept(gateway: LiveGateway, worker: TalkingWorker) -> None:
    worker.pieces, worker.step_s = ("x",) * 1000, 0.01
    with client_of(gateway) as client:
        with client.responses.create(**HELLO, stream=True) as stream:
            begun: Any = next(stream)
            next(event for event in stream if event.type == "response.output_text.delta")
        wait_for(lambda: bool(worker.aborted), timeout_s=2)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(begun.response.id)


def test_the_stream_has_named_events_and_no_done(gateway: LiveGateway) -> None:
    reply = httpx.post(f"{gateway.url}/v1/responses", json=HELLO | {"stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = reply.text.removesuffix("\n\n").split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
    assert "[DONE]" not in reply.text


def test_responses_are_counted_like_other_requests(gateway: LiveGateway, client: openai.OpenAI) -> None:
    client.responses.create(**HELLO)
    metrics = httpx.get(f"{gateway.url}/metrics").text
    assert (
        f'aviary_requests_total{{endpoint="/v1/responses",finish_reason="stop",model="{MODEL}",status="200"}}'
        in metrics
    )


def test_the_openapi_document_describes_the_responses(gateway: LiveGateway) -> None:
    paths = httpx.get(f"{gateway.url}/openapi.json").json()["paths"]
    body = paths["/v1/responses"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"input", "previous_response_id", "store"} <= set(body["properties"])
    assert set(paths["/v1/responses/{response_id}"]) == {"get", "delete"}
    assert {"/v1/responses/{response_id}/cancel", "/v1/responses/{response_id}/input_items"} <= set(paths)
