"""Tools and reasoning as the openai client sees them: whole, streamed, and through its own helpers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel

from model_registry.contract import ChatMessage, ChatPrompt
from tests.support.live_gateway import LiveGateway
from tests.support.scripted_pool import MODEL, TalkingWorker, entry

pytestmark = pytest.mark.parallel

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]
CALLS = (
    "<think>", "both\n", "</think>", "\nLet me look", ".\n<tool", "_call>\n", '{"name": "wea',
    'ther", "arguments": {"ci', 'ty": "Kö', 'ln"}}', "\n</tool_call>\n<tool_call>\n",
    '{"name": "time", "arguments": {"city": "Bonn"}}', "\n</tool_call>",
)  # fmt: skip


class Weather(BaseModel):
    """Weather of a city."""

    city: str


@pytest.fixture
def worker() -> TalkingWorker:
    return TalkingWorker(CALLS)


@pytest.fixture
def client(worker: TalkingWorker) -> Iterator[openai.OpenAI]:
    speaking = entry(tool_format="hermes", reasoning_format="think")
    with (
        LiveGateway({"a": worker}, of=speaking) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=10) as client,
    ):
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "tools": TOOLS, **fields})


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Of calls, which are new in each reply; and without what only streams have."""
    functions = [call["function"] for call in message["tool_calls"] or ()]
    calls = [{key: one[key] for key in ("name", "arguments")} for one in functions]
    kept = ("role", "content", "reasoning", "reasoning_content")
    return {key: message.get(key) for key in kept} | {"tool_calls": calls}


def test_calls_content_and_reasoning_are_told_apart(client: openai.OpenAI, worker: TalkingWorker) -> None:
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.reasoning == choice.message.reasoning_content == "both"
    told = [(call.type, call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert told == [("function", "weather", {"city": "Köln"}), ("function", "time", {"city": "Bonn"})]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    [request] = worker.requests
    assert request.sampling.shown_tokens == ("<tool_call>", "</tool_call>", "<think>", "</think>")
    assert request.sampling.repeats_opening == "<think>"
    assert isinstance(request.prompt, ChatPrompt)
    assert [tool["function"]["name"] for tool in request.prompt.tools] == ["weather", "time"]


def test_a_stream_put_together_by_the_client_says_what_the_whole_reply_says(client: openai.OpenAI) -> None:
    whole = ask(client)
    state = ChatCompletionStreamState()
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        state.handle_chunk(chunk)
    final = state.get_final_completion()
    assert without_ids(final.choices[0].message.to_dict()) == without_ids(whole.choices[0].message.to_dict())
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert final.usage == whole.usage
    calls = [call for chunk in chunks for one in chunk.choices for call in one.delta.tool_calls or ()]
    assert [(call.index, call.function.name) for call in calls if call.id] == [(0, "weather"), (1, "time")]
    assert all((call.type, call.function.name) == (None, None) for call in calls if not call.id)
    arguments = [call.function.arguments for call in calls if call.index == 0]
    assert arguments == ['{"ci', 'ty": "Kö', 'ln"}']


def test_the_clients_stream_helper_tells_of_each_call(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert (done[0].name, done[0].parsed_arguments) == ("weather", Weather(city="Köln"))


def test_the_clients_parse_helper_reads_the_arguments(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    reply = client.chat.completions.parse(model=MODEL, messages=HELLO, tools=tools)
    assert reply.choices[0].message.tool_calls is not None
    assert reply.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Köln")


def test_a_reply_can_be_sent_back_with_the_results_of_its_calls(client: openai.OpenAI, worker: TalkingWorker) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS) as stream:
        streamed = stream.get_final_completion().choices[0].message
    whole = ask(client).choices[0].message
    messages: list[Any] = [whole, streamed, whole.to_dict()]
    for message in messages:
        calls = (streamed if message is streamed else whole).tool_calls
        results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls or ()]
        ask(client, messages=[*HELLO, message, *results])
    prompts = [request.prompt for request in worker.requests[-3:]]
    said = [prompt.messages[1] for prompt in prompts if isinstance(prompt, ChatPrompt)]
    assert [(one.content, one.reasoning, len(one.tool_calls)) for one in said] == [("Let me look.", "both", 2)] * 3


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("auto", "tool_calls"), ("required", "tool_calls"), ({"type": "function", "function": {"name": "time"}}, "stop")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_finish_reason_is_openais_and_calls_that_are_asked_for_are_guaranteed(
    client: openai.OpenAI, worker: TalkingWorker, choice: Any, reason: str, stream: bool
) -> None:
    reply = ask(client, tool_choice=choice, stream=stream)
    constraint = worker.requests[-1].sampling.constraint
    assert (constraint and constraint.param) == (None if choice == "auto" else "tool_choice")
    choices = [one for chunk in reply for one in chunk.choices] if stream else reply.choices
    assert [one.finish_reason for one in choices if one.finish_reason] == [reason]


def test_a_call_that_is_cut_ends_for_its_length_with_what_there_is(client: openai.OpenAI) -> None:
    choice = ask(client, max_tokens=9).choices[0]
    assert choice.finish_reason == "length"
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"city": "Kö']


def test_content_is_null_where_there_are_only_calls(client: openai.OpenAI, worker: TalkingWorker) -> None:
    worker.pieces = ("<tool_call>", *CALLS[6:])
    message = ask(client).choices[0].message
    assert (message.content, len(message.tool_calls)) == (None, 2)
    state = ChatCompletionStreamState()
    for chunk in ask(client, stream=True):
        state.handle_chunk(chunk)
    assert state.get_final_completion().choices[0].message.content is None


def test_without_parallel_calls_there_is_one(client: openai.OpenAI) -> None:
    assert len(ask(client, parallel_tool_calls=False).choices[0].message.tool_calls) == 1


def test_without_tools_marks_of_calls_are_neither_read_nor_shown(client: openai.OpenAI, worker: TalkingWorker) -> None:
    for fields in ({"tools": None}, {"tool_choice": "none"}):
        choice = ask(client, **fields).choices[0]
        assert choice.message.tool_calls is None
        assert choice.message.content.startswith("Let me look.\n<tool_call>")
        assert choice.message.reasoning == "both"
        assert choice.finish_reason == "stop"
        assert worker.requests[-1].sampling.shown_tokens == ("<think>", "</think>")
        assert worker.requests[-1].prompt == ChatPrompt((ChatMessage("user", "hello"),))
