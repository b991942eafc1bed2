"""/v1/messages as the anthropic client sees it: replies, streams, tools, thinking, token counts, and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel

from gateway.channel import GrpcChannel
from model_registry.contract import ChatPrompt, ConstraintKind, Fault, FaultKind
from tests.support.gateways import wait_for
from tests.support.live_gateway import LiveGateway
from tests.support.live_worker import LiveWorker
from tests.support.scripted_pool import MODEL, SECRET, TalkingWorker, entry, pool_view
from workers.initializers import build_engine, initializer_for

pytestmark = pytest.mark.parallel

HELLO: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
TOOLS: Any = [
    {"name": name, "description": "Of a city.", "input_schema": {"type": "object", "properties": {"city": {}}}}
    for name in ("weather", "time")
]
CALLS = (
    "<think>", "both\n", "</think>", "\nLet me look", ".\n<tool", "_call>\n", '{"name": "wea', 'ther", "arguments": ',
    '{"city": "Kö', 'ln"}}', "\n</tool_call>\n<tool_call>\n", '{"name": "time", "arguments": {"city": "Bonn"}}',
    "\n</tool_call>",
)  # fmt: skip
ASK: dict[str, Any] = HELLO | {"tools": TOOLS}


def client_of(gateway: LiveGateway) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0, timeout=10)


@pytest.fixture
def worker() -> TalkingWorker:
    return TalkingWorker()


@pytest.fixture
def gateway(worker: TalkingWorker) -> Iterator[LiveGateway]:
    speaking = entry(tool_format="hermes", reasoning_format="think")
    with LiveGateway({"a": worker}, of=speaking, max_body_bytes=10_000) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[anthropic.Anthropic]:
    with client_of(gateway) as client:
        yield client


def prompt_of(worker: TalkingWorker) -> ChatPrompt:
    """Of the last request."""
    prompt = worker.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt


def test_a_conversation_is_answered(client: anthropic.Anthropic, worker: TalkingWorker) -> None:
    reply = client.messages.create(
        **HELLO, system="Be brief.", metadata={"user_id": "ann"}, extra_body={"temperature": 0.5}
    )
    assert [block.to_dict() for block in reply.content] == [{"type": "text", "text": "Hello, wörld", "citations": None}]
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", MODEL)
    assert (reply.stop_reason, reply.stop_sequence) == ("end_turn", None)
    assert reply.id.startswith("msg_")
    assert (reply.usage.input_tokens, reply.usage.cache_read_input_tokens, reply.usage.output_tokens) == (3, 2, 3)
    assert reply._request_id
    assert [(message.role, message.content) for message in prompt_of(worker).messages] == [
        ("system", "Be brief."), ("user", "hello"),
    ]  # fmt: skip
    assert worker.requests[-1].sampling.temperature == 0.5


@pytest.mark.parametrize(("max_tokens", "stop_reason"), [(2, "max_tokens"), (3, "end_turn")])
def test_a_streamed_message_says_what_the_whole_one_says(
    client: anthropic.Anthropic, worker: TalkingWorker, max_tokens: int, stop_reason: str
) -> None:
    worker.step_s = 0.01
    asked = HELLO | {"max_tokens": max_tokens}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert final.to_dict() | {"id": whole.id} == whole.to_dict()
    assert (whole.stop_reason, len(texts)) == (stop_reason, max_tokens)
    events = list(client.messages.create(**asked, stream=True))
    assert [event.type for event in events][-2:] == ["message_delta", "message_stop"]


async def test_the_async_client_works_all_ways(gateway: LiveGateway) -> None:
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        whole = await client.messages.create(**HELLO)
        async with client.messages.stream(**HELLO) as stream:
            final = await stream.get_final_message()
    assert final.to_dict() | {"id": whole.id} == whole.to_dict()


def test_thinking_text_and_calls_are_blocks_whole_and_streamed(
    client: anthropic.Anthropic, worker: TalkingWorker
) -> None:
    worker.pieces, worker.step_s = CALLS, 0.005
    whole = client.messages.create(**ASK)
    thinking, text, *calls = whole.content
    assert thinking.type == "thinking"
    assert text.type == "text"
    assert (thinking.thinking, text.text) == ("both", "Let me look.")
    assert [(call.name, call.input) for call in calls if call.type == "tool_use"] == [
        ("weather", {"city": "Köln"}), ("time", {"city": "Bonn"}),
    ]  # fmt: skip
    assert whole.stop_reason == "tool_use"
    with client.messages.stream(**ASK) as stream:
        final = stream.get_final_message()
    without_ids = [[block.to_dict() | {"id": None} for block in one.content] for one in (whole, final)]
    assert without_ids[0] == without_ids[1]
    assert final.stop_reason == "tool_use"
    assert [tool["function"]["name"] for tool in prompt_of(worker).tools] == ["weather", "time"]


def test_what_was_said_goes_back_with_what_came_of_the_calls(
    client: anthropic.Anthropic, worker: TalkingWorker
) -> None:
    worker.pieces = CALLS
    with client.messages.stream(**ASK) as stream:
        reply = stream.get_final_message()
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"of {block.name}"}
        for block in reply.content
        if block.type == "tool_use"
    ]
    before: Any = [*HELLO["messages"], {"role": "assistant", "content": reply.content}]
    client.messages.create(**ASK | {"messages": [*before, {"role": "user", "content": results}]})
    user, assistant, weather, time = prompt_of(worker).messages
    assert (user.content, assistant.content, assistant.reasoning) == ("hello", "Let me look.", "both")
    assert [(call.name, json.loads(call.arguments)) for call in assistant.tool_calls] == [
        ("weather", {"city": "Köln"}), ("time", {"city": "Bonn"}),
    ]  # fmt: skip
    assert (weather.tool_call_id, weather.content) == (assistant.tool_calls[0].id, "of weather")
    assert (time.name, time.content) == ("time", "of time")


def test_a_call_that_must_come_is_guaranteed(client: anthropic.Anthropic, worker: TalkingWorker) -> None:
    client.messages.create(**ASK, tool_choice={"type": "any"})
    constraint = worker.requests[-1].sampling.constraint
    assert constraint is not None
    assert (constraint.kind, constraint.param) == (ConstraintKind.GRAMMAR, "tool_choice")


class Answer(BaseModel):
    text: str


def test_a_parsed_answer_is_asked_for_by_its_schema(client: anthropic.Anthropic, worker: TalkingWorker) -> None:
    worker.pieces = ('{"text":', ' "yes"}')
    parsed = client.messages.parse(**HELLO, output_format=Answer)
    assert parsed.parsed_output == Answer(text="yes")
    constraint = worker.requests[-1].sampling.constraint
    assert constraint is not None
    assert constraint.param == "output_config.format.schema"
    again: Any = [*HELLO["messages"], {"role": "assistant", "content": parsed.content}, *HELLO["messages"]]
    client.messages.create(**HELLO | {"messages": again})
    assert prompt_of(worker).messages[1].content == '{"text": "yes"}'


def test_thinking_is_switched_on_and_off_where_the_model_can(
    client: anthropic.Anthropic, worker: TalkingWorker
) -> None:
    modes: list[Any] = [({"type": "enabled", "budget_tokens": 1024}, True), ({"type": "disabled"}, False)]
    for thinking, is_on in modes:
        client.messages.create(**HELLO, thinking=thinking)
        assert prompt_of(worker).template_kwargs == {"enable_thinking": is_on, "thinking": is_on}
    client.messages.create(**HELLO, thinking={"type": "adaptive"})
    assert prompt_of(worker).template_kwargs == {}


def test_a_model_with_a_prompt_format_neither_thinks_nor_tries_harder() -> None:
    formatted = entry(prompt_format="{instruction}")
    with LiveGateway({"a": TalkingWorker()}, of=formatted) as gateway, client_of(gateway) as client:
        client.messages.create(**HELLO, thinking={"type": "disabled"})
        with pytest.raises(anthropic.BadRequestError, match="'thinking'"):
            client.messages.create(**HELLO, thinking={"type": "enabled", "budget_tokens": 1024})
        with pytest.raises(anthropic.BadRequestError, match=r"'output_config\.effort'"):
            client.messages.create(**HELLO, output_config={"effort": "low"})


@pytest.fixture(scope="module")
def echoing() -> Iterator[anthropic.Anthropic]:
    """A client of a real engine, which says the prompt again."""
    of = entry(max_model_len=2048)
    engine = build_engine(of, initializer_for(of).load(of, lambda line: None))
    with (
        LiveWorker(engine, SECRET) as worker,
        LiveGateway({}, view=pool_view(worker.view(of)), connect=GrpcChannel) as gateway,
        client_of(gateway) as client,
    ):
        yield client


def test_it_tells_which_stop_ended_it(echoing: anthropic.Anthropic) -> None:
    asked = HELLO | {"messages": [{"role": "user", "content": "one two three"}], "stop_sequences": ["thr", "two"]}
    whole: Any = echoing.messages.create(**asked)
    with echoing.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    for reply in (whole, final):
        assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "two")
        assert [block.to_dict()["text"] for block in reply.content] == ["one "]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief.", "tools": TOOLS, "tool_choice": {"type": "any"}},
        {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Well"}]},
        {"messages": [{"role": "user", "content": "the same beginning of everything " * 4}]},
    ],
)
def test_the_tokens_that_are_counted_are_those_of_the_request(
    echoing: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    asked = HELLO | {"max_tokens": 1} | fields
    counted = echoing.messages.count_tokens(**{name: asked[name] for name in asked if name != "max_tokens"})
    for _ in range(2):  # the second time from the cache
        usage = echoing.messages.create(**asked).usage
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens


async def test_the_async_client_counts_tokens(gateway: LiveGateway, echoing: anthropic.Anthropic) -> None:
    url = str(echoing.base_url)
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        counted = await client.messages.count_tokens(model=MODEL, messages=HELLO["messages"])
    assert counted.input_tokens == len("hello") + 1


@pytest.mark.parametrize(
    ("fields", "error", "kind", "code"),
    [
        ({"model": "no/such"}, anthropic.NotFoundError, "not_found_error", "model_not_found"),
        ({"extra_body": {"temperature": 2}}, anthropic.BadRequestError, "invalid_request_error",
         "decimal_above_max_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, anthropic.BadRequestError,
         "invalid_request_error", "unsupported_value"),
        ({"extra_body": {"colour": "red"}}, anthropic.BadRequestError, "invalid_request_error", "unknown_parameter"),
        ({"system": "x" * 10_000}, anthropic.RequestTooLargeError, "request_too_large", "request_too_large"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_raises_the_clients_exception(
    client: anthropic.Anthropic,
    fields: dict[str, Any],
    error: type[anthropic.APIStatusError],
    kind: str,
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(error) as caught:
        client.messages.create(**(HELLO | {"stream": stream} | fields))
    assert (caught.value.type, caught.value.error_code) == (kind, code)
    assert caught.value.request_id
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["request_id"]) == ("error", caught.value.request_id)


def test_a_path_below_that_is_not_there_is_an_error_of_the_same_shape(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.batches.list()
    assert caught.value.type == "not_found_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_early_fault_is_an_error_with_its_status(
    worker: TalkingWorker, client: anthropic.Anthropic, stream: bool
) -> None:
    worker.pieces = ()
    worker.fault = Fault(kind=FaultKind.CONTEXT_LENGTH_EXCEEDED, message="too long")
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**HELLO, stream=stream)
    assert caught.value.error_code == "context_length_exceeded"


def test_a_worker_lost_in_mid_stream_is_a_typed_error(
    gateway: LiveGateway, worker: TalkingWorker, client: anthropic.Anthropic
) -> None:
    worker.pieces, worker.step_s = ("x",) * 1000, 0.01
    stream = client.messages.create(**HELLO | {"max_tokens": 1000}, stream=True)
    next(event for event in stream if event.type == "content_block_delta")
    gateway.call(worker.die)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(stream)
    assert (caught.value.type, caught.value.error_code) == ("api_error", "worker_lost")


def test_a_message_whose_client_left_is_aborted(gateway: LiveGateway, worker: TalkingWorker) -> None:
    worker.pieces, worker.step_s = ("x",) * 1000, 0.01
    with client_of(gateway) as client:
        with client.messages.stream(**HELLO | {"max_tokens": 1000}) as stream:
            next(iter(stream.text_stream))
        wait_for(lambda: bool(worker.aborted), timeout_s=2)


def test_messages_are_counted_like_other_requests(gateway: LiveGateway, client: anthropic.Anthropic) -> None:
    client.messages.create(**HELLO)
    metrics = httpx.get(f"{gateway.url}/metrics").text
    assert (
        f'aviary_requests_total{{endpoint="/v1/messages",finish_reason="stop",model="{MODEL}",status="200"}}' in metrics
    )
