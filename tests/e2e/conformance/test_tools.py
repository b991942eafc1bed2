"""Tools of chats: every form of the choice, with what else shapes an answer, streamed and whole; and the way back.

The echo engine says its prompt, in which tools are described, and otherwise only what a choice forces it to say.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.e2e.conftest import Server
from tests.support.conformance import Answered, Fields, across, both_ways, error_of, one_by_one
from tests.support.conformance_cases import (
    CHAT,
    CHAT_FIELDS,
    CHAT_PARAMETERS,
    ECHO,
    INTERACTING,
    MESSAGES,
    SAID,
    SMOLLM2,
    as_client_call,
)

pytestmark = pytest.mark.timeout(600)  # the first start may have to fetch the model

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ZONE = {"type": "object", "properties": {"zone": {"enum": ["CET", "UTC"]}}, "required": ["zone"]}
SCHEMAS = {"weather": CITY, "time": ZONE}


def tools(**of_all: Any) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": name, "parameters": schema, **of_all}}
        for name, schema in SCHEMAS.items()
    ]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def call(name: str, **arguments: Any) -> str:
    """As a model writes one."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def told(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


CALLS = f"Let me look.\n{call('weather', city='Köln', days=2)}\n{call('time', zone='CET')}"
WAY_BACK: list[dict[str, Any]] = [
    {"role": "user", "content": "Where?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "UTC"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
]
FREE: dict[str, Fields] = {
    "free": {"tools": tools()},
    "free, and made": {"tools": tools(), "tool_choice": "auto", **told(CALLS)},
    "free, and made once": {"tools": tools(), "parallel_tool_calls": False, **told(CALLS)},
    "free and strict": {"tools": tools(strict=True), **told(CALLS)},
    "none": {"tools": tools(), "tool_choice": "none", **told(CALLS)},
    "some allowed": {"tools": tools(), "tool_choice": allowed("auto", "time"), **told(CALLS)},
    "the way back": {"tools": tools(), "messages": WAY_BACK},
}
"""Long answers: the description of the tools is repeated."""
FORCED: dict[str, Fields] = {
    "required": {"tools": tools(), "tool_choice": "required"},
    "required once": {"tools": tools(), "tool_choice": "required", "parallel_tool_calls": False},
    "named": {"tools": tools(strict=True), "tool_choice": named("weather")},
    "some required": {"tools": tools(), "tool_choice": allowed("required", "weather")},
}
CHOICES = FREE | FORCED
OTHERS = {name: CHAT_PARAMETERS[name] for name in INTERACTING}
FEW = {name: OTHERS[name] for name in ("several choices", "a limit", "several stops", "usage", "top logprobs")}
MADE = {name: FREE[name] for name in ("free, and made",)}


def calls_of(answered: Answered) -> list[tuple[str, str]]:
    """Name and arguments of each."""
    functions = [one["function"] for answer in answered.answers for one in answer.get("tool_calls", ())]
    return [(function["name"], function["arguments"]) for function in functions]


@pytest.mark.parametrize("fields", across(FORCED, OTHERS) + across(MADE, FEW))
def test_streamed_calls_are_the_whole_ones(http: httpx.Client, fields: Fields) -> None:
    answered = both_ways(http, CHAT, ECHO, fields)
    for answer, reason in zip(answered.answers, answered.finish_reasons, strict=True):
        has_calls = bool(answer.get("tool_calls"))
        is_named = isinstance(fields.get("tool_choice"), dict) and fields["tool_choice"]["type"] == "function"
        assert reason in ({"stop", "length"} if is_named or not has_calls else {"tool_calls", "length", "stop"})
        assert not (reason == "tool_calls" and not has_calls)


@pytest.mark.parametrize(
    ("choice", "names", "reason"),
    [
        ("free", [], "stop"),
        ("free, and made", ["weather", "time"], "tool_calls"),
        ("free, and made once", ["weather"], "tool_calls"),
        ("free and strict", ["time"], "tool_calls"),
        ("none", [], "stop"),
        ("required", ["time"], "tool_calls"),
        ("required once", ["time"], "tool_calls"),
        ("named", ["weather"], "stop"),
        ("some allowed", ["weather", "time"], "tool_calls"),
        ("some required", ["weather"], "tool_calls"),
        ("the way back", ["time"], "tool_calls"),
    ],
)
def test_a_choice_is_kept(http: httpx.Client, choice: str, names: list[str], reason: str) -> None:
    answered = both_ways(http, CHAT, ECHO, CHOICES[choice])
    assert answered.finish_reasons == [reason]
    assert [name for name, _ in calls_of(answered)] == names
    for name, arguments in calls_of(answered):
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


def test_without_tools_and_with_the_choice_of_none_the_prompt_is_the_same(http: httpx.Client) -> None:
    without, none = (CHAT.ask(http, ECHO, fields) for fields in ({}, {"tools": tools(), "tool_choice": "none"}))
    assert without == none


def test_what_an_answer_says_beside_its_calls_is_its_content(http: httpx.Client) -> None:
    (answer,) = both_ways(http, CHAT, ECHO, CHOICES["free, and made"]).answers
    assert answer["content"].endswith("\nLet me look.")
    (answer,) = both_ways(http, CHAT, ECHO, CHOICES["required"]).answers
    assert "content" not in answer


def test_wherever_a_limit_cuts_a_call_its_beginning_is_told(http: httpx.Client) -> None:
    fields = {**CHOICES["named"], "stream_options": {"include_usage": True}}
    whole = both_ways(http, CHAT, ECHO, fields)
    assert whole.usage is not None
    num_tokens = whole.usage["completion_tokens"]
    [(_, arguments)] = calls_of(whole)
    lengths = []
    for limit in range(1, num_tokens, 3):
        cut = both_ways(http, CHAT, ECHO, {**fields, "max_tokens": limit})
        assert cut.finish_reasons == ["length"]
        for name, beginning in calls_of(cut):
            assert name == "weather"
            assert arguments.startswith(beginning)
            lengths.append(len(beginning))
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 5


def test_every_one_of_several_choices_has_its_calls(http: httpx.Client) -> None:
    fields = {**CHOICES["required"], "n": 3, "temperature": 1, "seed": 3, "logprobs": True}
    answered = both_ways(http, CHAT, ECHO, fields)
    assert [len(answer["tool_calls"]) for answer in answered.answers] == [1, 1, 1]


# Through the client


class Weather(BaseModel):
    """Of a city."""

    city: Literal["Bonn", "Köln"]
    days: int


CLIENTS_TOOLS = [openai.pydantic_function_tool(Weather, name="weather")]


@pytest.mark.parametrize("fields", one_by_one(FORCED | MADE))
def test_the_strict_client_takes_every_call(strict_client: openai.OpenAI, fields: Fields) -> None:
    request = as_client_call({**CHAT.needed, **fields}, CHAT_FIELDS)
    strict_client.chat.completions.create(model=ECHO, **request)
    list(strict_client.chat.completions.create(model=ECHO, stream=True, **request))


def test_the_clients_parse_helper_reads_the_arguments(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=ECHO, messages=MESSAGES, tools=CLIENTS_TOOLS, tool_choice="required", n=2, seed=1
    )
    for choice in reply.choices:
        assert choice.finish_reason == "tool_calls"
        for one in choice.message.tool_calls or ():
            assert isinstance(one.function.parsed_arguments, Weather)
        assert choice.message.tool_calls


def test_the_clients_stream_helper_tells_of_calls_and_reads_them(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=ECHO, messages=MESSAGES, tools=CLIENTS_TOOLS, tool_choice="required", parallel_tool_calls=False, seed=1
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert isinstance(done.parsed_arguments, Weather)
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == done.parsed_arguments


async def test_the_async_clients_helpers_do_too(server: Server) -> None:
    asked: Any = {"model": ECHO, "messages": MESSAGES, "tools": CLIENTS_TOOLS, "tool_choice": named("weather")}
    async with server.async_client as client:
        parsed = await client.chat.completions.parse(**asked)
        async with client.chat.completions.stream(**asked) as stream:
            streamed = await stream.get_final_completion()
    calls = [one for reply in (parsed, streamed) for one in reply.choices[0].message.tool_calls or ()]
    assert len(calls) == 2
    assert calls[0].function.parsed_arguments == calls[1].function.parsed_arguments


def test_an_argument_that_is_cut_raises_the_clients_own_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=ECHO, messages=MESSAGES, tools=CLIENTS_TOOLS, tool_choice="required", max_tokens=50
        )


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_reply_goes_back_with_the_results_of_its_calls(client: openai.OpenAI, is_streamed: bool) -> None:
    asked: Any = {"model": ECHO, "messages": told(CALLS)["messages"], "tools": CLIENTS_TOOLS}
    if is_streamed:
        with client.chat.completions.stream(**asked) as stream:
            message = stream.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.parse(**asked).choices[0].message
    assert message.tool_calls is not None
    results: list[ChatCompletionMessageParam] = [
        {"role": "tool", "tool_call_id": one.id, "content": f"of {one.function.name}"} for one in message.tool_calls
    ]
    again: Any = [*MESSAGES, message, *results]
    said = client.chat.completions.create(model=ECHO, messages=again).choices[0].message.content
    assert said is not None
    assert said.startswith(SAID)
    assert message.tool_calls[0].function.arguments in said
    assert said.endswith("<tool_response>\nof weather\n</tool_response>")


# Errors


def with_tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "weather", **function}}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": tools() * 65}, "array_above_max_length", "tools"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "unsupported_value", "tools[0].type"),
        (with_tool(name="two words"), "invalid_value", "tools[0].function.name"),
        (with_tool(name="a" * 65), "string_above_max_length", "tools[0].function.name"),
        (with_tool(parameters={"type": "array"}), "invalid_function_parameters", "tools[0].function.parameters"),
        (with_tool(colour="red"), "unknown_parameter", "tools[0].function.colour"),
        ({"tools": tools() + tools()}, "invalid_value", "tools[2].function.name"),
        ({"tools": tools(), "tool_choice": "perhaps"}, "invalid_value", "tool_choice"),
        ({"tools": tools(), "tool_choice": named("wether")}, "invalid_value", "tool_choice.function.name"),
        ({"tools": tools(), "tool_choice": allowed("auto", "x")}, "invalid_value",
         "tool_choice.allowed_tools.tools[0].function.name"),
        ({"tools": tools(), "tool_choice": {"type": "function"}}, "missing_required_parameter",
         "tool_choice.function"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"functions": [{"name": "weather"}]}, "unsupported_parameter", "functions"),
        ({"function_call": {"name": "weather"}}, "unsupported_parameter", "function_call"),
        ({"messages": WAY_BACK[2:]}, "invalid_value", "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "missing_required_parameter", "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": WAY_BACK[1]["tool_calls"]}]},
         "unsupported_parameter", "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "content": None}]}, "invalid_type", "messages[0].content"),
    ],
)  # fmt: skip
def test_a_wrong_tool_is_named_with_its_code(
    http: httpx.Client, fields: Fields, code: str, param: str, stream: bool
) -> None:
    response = http.post(CHAT.path, json=CHAT.body(ECHO, {"stream": stream, **fields}))
    assert error_of(response) == (400, "invalid_request_error", code, param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_strict_schema_that_no_grammar_can_express_is_named(http: httpx.Client, stream: bool) -> None:
    impossible = with_tool(strict=True, parameters={"type": "object", "properties": {"a": {"not": {"type": "string"}}}})
    response = http.post(CHAT.path, json=CHAT.body(ECHO, {"stream": stream, **impossible}))
    assert error_of(response)[:2] == (400, "invalid_request_error")


def test_a_call_of_a_real_model_fits_whatever_it_would_say(http: httpx.Client) -> None:
    fields = {
        "tools": tools()[:1],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 1.5,
        "seed": 2,
    }
    answered = both_ways(http, CHAT, SMOLLM2, {**fields, "max_tokens": 64})
    assert answered.finish_reasons == ["tool_calls"]
    [(_, arguments)] = calls_of(answered)
    jsonschema.validate(json.loads(arguments), CITY)
