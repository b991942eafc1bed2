"""Function calls and reasoning of /v1/responses as the openai client sees them, and the way back with their outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from model_registry.contract import ChatPrompt, ConstraintKind
from tests.support.live_gateway import LiveGateway
from tests.support.scripted_pool import MODEL, TalkingWorker, entry

pytestmark = pytest.mark.parallel

TOOLS: Any = [
    {"type": "function", "name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    for name in ("weather", "time")
]
CALLS = (
    "<think>", "both\n", "</think>", "\nLet me look", ".\n<tool", "_call>\n", '{"name": "wea', 'ther", "arguments": ',
    '{"city": "Kö', 'ln"}}', "\n</tool_call>\n<tool_call>\n", '{"name": "time", "arguments": {"city": "Bonn"}}',
    "\n</tool_call>",
)  # fmt: skip
ASK: dict[str, Any] = {"model": MODEL, "input": "hello", "tools": TOOLS}


@pytest.fixture
def worker() -> TalkingWorker:
    return TalkingWorker(CALLS, step_s=0.005)


@pytest.fixture
def client(worker: TalkingWorker, tmp_path: Path) -> Iterator[openai.OpenAI]:
    speaking = entry(tool_format="hermes", reasoning_format="think")
    with (
        LiveGateway({"a": worker}, of=speaking, responses_store=tmp_path / "responses.db") as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        yield client


def said(output: list[Any]) -> list[tuple[str, str]]:
    return [
        (item.name, item.arguments) if item.type == "function_call" else (item.type, item.content[0].text)
        for item in output
    ]


def test_reasoning_text_and_calls_are_items_of_the_output(client: openai.OpenAI, worker: TalkingWorker) -> None:
    reply = client.responses.create(**ASK)
    assert said(reply.output) == [
        ("reasoning", "both"), ("message", "Let me look."),
        ("weather", '{"city": "Köln"}'), ("time", '{"city": "Bonn"}'),
    ]  # fmt: skip
    assert reply.status == "completed"
    assert reply.usage is not None
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    prompt = worker.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    assert [tool["function"]["name"] for tool in prompt.tools] == ["weather", "time"]


def test_a_stream_put_together_by_the_client_says_what_the_whole_response_says(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASK)
    with client.responses.stream(**ASK) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert said(final.output) == said(whole.output)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Köln"}{"city": "Bonn"}'
    reasoning = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(reasoning) == "both"


def test_a_call_that_must_come_is_guaranteed(client: openai.OpenAI, worker: TalkingWorker) -> None:
    client.responses.create(**ASK, tool_choice="required")
    constraint = worker.requests[-1].sampling.constraint
    assert constraint is not None
    assert (constraint.kind, constraint.param) == (ConstraintKind.GRAMMAR, "tool_choice")


def test_a_form_of_the_text_holds_where_no_call_is_made(client: openai.OpenAI, worker: TalkingWorker) -> None:
    client.responses.create(**ASK, text={"format": {"type": "json_object"}})
    constraint = worker.requests[-1].sampling.constraint
    assert constraint is not None
    assert (constraint.kind, constraint.param) == (ConstraintKind.GRAMMAR, "text.format")


@pytest.mark.parametrize("keeps", [True, False])
def test_the_outputs_of_calls_go_on_with_the_conversation(
    client: openai.OpenAI, worker: TalkingWorker, keeps: bool
) -> None:
    reply = client.responses.create(**ASK, store=keeps)
    outputs: list[Any] = [
        {"type": "function_call_output", "call_id": item.call_id, "output": json.dumps({"of": item.name})}
        for item in reply.output
        if item.type == "function_call"
    ]
    if keeps:
        client.responses.create(**ASK | {"input": outputs}, previous_response_id=reply.id)
    else:
        client.responses.create(**ASK | {"input": [{"role": "user", "content": "hello"}, *reply.output, *outputs]})
    prompt = worker.requests[-1].prompt
    assert isinstance(prompt, ChatPrompt)
    user, assistant, weather, time = prompt.messages
    assert (user.content, assistant.content, assistant.reasoning) == ("hello", "Let me look.", "both")
    assert [call.name for call in assistant.tool_calls] == [weather.name, time.name] == ["weather", "time"]
    assert (weather.tool_call_id, weather.content) == (assistant.tool_calls[0].id, '{"of": "weather"}')
