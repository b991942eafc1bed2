"""Responses, for every parameter, alone and in pairs, streamed and whole; kept ones; and the client's helpers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.responses import response_create_params
from pydantic import BaseModel

from tests.e2e.conftest import Server
from tests.support.client_fields import client_fields
from tests.support.conformance import Fields, across, error_of, in_pairs, one_by_one
from tests.support.conformance_cases import ECHO, SAID, SMOLLM2, as_client_call, without_stream_options
from tests.support.conformance_responses import PATH, Responded, both_ways

pytestmark = pytest.mark.timeout(600)  # the first start may have to fetch the model

KNOWN = client_fields(response_create_params.ResponseCreateParams)
LOGPROBS = "message.output_text.logprobs"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "name": "weather", "parameters": CITY},
    {"type": "function", "name": "time", "parameters": {"type": "object"}},
]
NAMED = {"type": "function", "name": "weather"}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Say it."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "first"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "second"}]},
    {"role": "user", "content": "third"},
]
PARAMETERS: dict[str, Fields] = {
    "a seed": {"seed": 7},
    "sampling": {"temperature": 0.7, "top_p": 0.5, "top_k": 2, "min_p": 0.1, "presence_penalty": 0.5},
    "a limit": {"max_output_tokens": 6},
    "a least length": {"min_tokens": 4},
    "a stop": {"stop": "wör"},
    "several stops": {"stop": ["zzz", "🙂", "ld 🙂"]},
    "a stop token": {"stop_token_ids": [32]},
    "penalties": {"frequency_penalty": -0.5, "repetition_penalty": 1.3, "logit_bias": {"104": -5}},
    "no end": {"ignore_eos": True, "max_output_tokens": 40},
    "logprobs": {"include": [LOGPROBS]},
    "top logprobs": {"include": [LOGPROBS], "top_logprobs": 3},
    "no padding": {"stream_options": {"include_obfuscation": False}},
    "instructions": {"instructions": "Be brief."},
    "items": {"input": ITEMS},
    "a call and its output": {"input": [*ITEMS, CALL, OUTPUT]},
    "nulls": dict.fromkeys(("seed", "temperature", "stop", "logit_bias", "stream_options", "text", "tools", "include")),
    "labels": {"metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "terms"},
    "not kept": {"store": False},
    "plain text": {"text": {"format": {"type": "text"}}, "truncation": "disabled", "background": False},
    "an object": {"text": {"format": {"type": "json_object"}}},
    "a schema": {"text": {"format": {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}}},
    "its format": {"use_prompt_format": True},
}
TOOL_PARAMETERS: dict[str, Fields] = {
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "required once": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
    "named": {"tools": TOOLS, "tool_choice": NAMED},
    "allowed": {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}},
    "none": {"tools": TOOLS, "tool_choice": "none"},
}
FREE: dict[str, Fields] = {
    "free": {"tools": TOOLS},
    "free, and made": {
        "tools": TOOLS,
        "input": '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>',
    },
}
"""Long answers: the description of the tools is repeated."""
TOOL_CHOICES = {**TOOL_PARAMETERS, **FREE}
ASKED: Fields = {"input": SAID}


def respond(http: httpx.Client, fields: Fields, model: str = ECHO) -> Responded:
    return both_ways(http, model, {**ASKED, **fields})


@pytest.mark.parametrize(
    "fields",
    one_by_one(PARAMETERS)
    + in_pairs(PARAMETERS, but=[("top logprobs", "nulls")])
    + across(TOOL_PARAMETERS, PARAMETERS),
)
def test_a_streamed_response_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    response = respond(http, fields)
    if fields.get("include"):
        said = [part for item in response.output if item["type"] == "message" for part in item["content"]]
        assert all(part["logprobs"] or not part["text"] for part in said)


@pytest.mark.parametrize(
    ("fields", "text", "status", "num_tokens"),
    [
        ({}, SAID, "completed", 25),
        ({"max_output_tokens": 8}, "hello na", "incomplete", 8),
        ({"max_output_tokens": 10}, "hello naï", "incomplete", 10),
        ({"stop": "wör"}, "hello naïve ", "completed", 17),
        ({"stop_token_ids": [32]}, "hello", "completed", 6),
        ({"instructions": "Be brief."}, f"Be brief.\n{SAID}", "completed", 35),
        ({"input": ITEMS}, "Say it.\nfirst\nsecond\nthird", "completed", 27),
    ],
)
def test_limits_and_stops_cut_where_they_say(
    http: httpx.Client, fields: Fields, text: str, status: str, num_tokens: int
) -> None:
    response = respond(http, fields)
    assert (response.text, response.status, response.usage["output_tokens"]) == (text, status, num_tokens)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", 1),
        ("required once", 1),
        ("named", 1),
        ("allowed", 1),
        ("none", 0),
        ("free", 0),
        ("free, and made", 1),
    ],
)
def test_a_choice_of_tools_is_kept(http: httpx.Client, choice: str, names: int) -> None:
    response = respond(http, TOOL_CHOICES[choice])
    assert len(response.calls) == names
    for name, arguments in response.calls:
        assert name in ("weather", "time")
        jsonschema.validate(json.loads(arguments), CITY if name == "weather" else {"type": "object"})


def test_the_form_of_a_text_is_kept(http: httpx.Client) -> None:
    assert isinstance(json.loads(respond(http, PARAMETERS["an object"]).text), dict)
    jsonschema.validate(json.loads(respond(http, PARAMETERS["a schema"]).text), CITY)


def test_a_call_that_is_cut_is_incomplete(http: httpx.Client) -> None:
    response = respond(http, {**TOOL_PARAMETERS["named"], "max_output_tokens": 60})
    assert (response.status, response.output[-1]["status"]) == ("incomplete", "incomplete")
    [(name, arguments)] = response.calls
    assert (name, arguments.startswith('{"city": ')) == ("weather", True)


@pytest.mark.parametrize("name", ["named", "a schema", "a limit"])
def test_a_streamed_response_of_a_real_model_is_the_whole_one(http: httpx.Client, name: str) -> None:
    fields = {
        "input": "Where is Paris?",
        "temperature": 0,
        "max_output_tokens": 60,
        **(PARAMETERS | TOOL_PARAMETERS)[name],
    }
    assert respond(http, fields, SMOLLM2).usage["output_tokens"] > 0


# Through the client


class City(BaseModel):
    """Of a country."""

    name: str
    capital: bool | None


@pytest.mark.parametrize("fields", one_by_one(PARAMETERS | TOOL_PARAMETERS))
def test_the_strict_client_takes_every_response(strict_client: openai.OpenAI, fields: Fields) -> None:
    request = as_client_call({**ASKED, **fields}, KNOWN)
    strict_client.responses.create(model=ECHO, **without_stream_options(request))
    list(strict_client.responses.create(model=ECHO, stream=True, **request))


def test_the_clients_stream_helper_puts_the_response_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model=ECHO, input=SAID) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == SAID


def test_the_clients_parse_helper_makes_models(client: openai.OpenAI) -> None:
    assert isinstance(client.responses.parse(model=ECHO, input=SAID, text_format=City).output_parsed, City)


def test_the_clients_helpers_read_arguments(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(City, name="city")["function"]
    tools: Any = [{"type": "function", **tool}]
    with client.responses.stream(model=ECHO, input=SAID, tools=tools, tool_choice="required") as stream:
        [item] = stream.get_final_response().output
    assert item.type == "function_call"
    City.model_validate_json(item.arguments)


async def test_the_async_client_works_both_ways(server: Server) -> None:
    async with server.async_client as client:
        whole = await client.responses.create(model=ECHO, input=SAID)
        async with client.responses.stream(model=ECHO, input=SAID) as stream:
            final = await stream.get_final_response()
        parsed = await client.responses.parse(model=ECHO, input=SAID, text_format=City)
    assert whole.output_text == final.output_text == SAID
    assert isinstance(parsed.output_parsed, City)


# What is kept


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_conversation_goes_on_and_can_be_read_listed_and_deleted(client: openai.OpenAI, is_streamed: bool) -> None:
    first = client.responses.create(model=ECHO, input="one", instructions="Not kept.")
    asked: Any = {"model": ECHO, "input": "two", "previous_response_id": first.id}
    if is_streamed:
        with client.responses.stream(**asked) as stream:
            reply = stream.get_final_response()
        second_id, said = reply.id, reply.output_text
    else:
        whole = client.responses.create(**asked)
        second_id, said = whole.id, whole.output_text
    assert said == "one\nNot kept.\none\ntwo"
    assert client.responses.retrieve(second_id).output_text == said
    listed: list[Any] = [item.to_dict() for item in client.responses.input_items.list(second_id, order="asc", limit=2)]
    assert [item["content"][0]["text"] for item in listed] == ["one", "Not kept.\none", "two"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="Previous response"):
        client.responses.create(model=ECHO, input="three", previous_response_id=second_id)


def test_outputs_of_calls_go_on_with_what_is_kept(client: openai.OpenAI) -> None:
    tools: Any = TOOLS
    first = client.responses.create(model=ECHO, input=SAID, tools=tools, tool_choice="required")
    [call] = first.output
    assert call.type == "function_call"
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    second = client.responses.create(model=ECHO, input=output, previous_response_id=first.id)
    assert call.arguments in second.output_text
    assert second.output_text.endswith("<tool_response>\nsunny\n</tool_response>")
    again: Any = [{"role": "user", "content": SAID}, *first.output, *output]
    assert client.responses.create(model=ECHO, input=again, store=False).output_text == second.output_text


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "no/such"}, 404, "model_not_found", None),
        ({"input": None}, 400, "invalid_type", "input"),
        ({"input": []}, 400, "empty_array", "input"),
        ({"input": [{"role": "robot", "content": "hi"}]}, 400, "invalid_value", "input[0].role"),
        ({"input": "a" * 5000}, 400, "context_length_exceeded", "input"),
        ({"input": [OUTPUT]}, 400, None, "input"),
        ({"temperature": 3}, 400, "decimal_above_max_value", "temperature"),
        ({"max_output_tokens": 5000}, 400, "context_length_exceeded", "input"),
        ({"n": 2}, 400, "unknown_parameter", "n"),
        ({"background": True}, 400, "unsupported_parameter", "background"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_not_found", "previous_response_id"),
        ({"text": {"format": {"type": "json_schema", "name": "it", "schema": {"type": "thing"}}}}, 400,
         "invalid_value", "text.format.schema"),
        ({"tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_code(
    http: httpx.Client, fields: Fields, status: int, code: str | None, param: str | None, stream: bool
) -> None:
    response = http.post(PATH, json={"model": ECHO, **ASKED, "stream": stream, **fields})
    assert error_of(response) == (status, "invalid_request_error", code, param)


@pytest.mark.parametrize(
    ("method", "path", "status", "param"),
    [
        ("GET", "/v1/responses/resp_1", 404, None),
        ("DELETE", "/v1/responses/resp_1", 404, None),
        ("GET", "/v1/responses/resp_1/input_items", 404, None),
        ("GET", "/v1/responses/resp_1/input_items?limit=0", 400, "limit"),
        ("POST", "/v1/responses/resp_1/cancel", 404, None),
    ],
)
def test_a_response_that_is_not_kept_is_not_found(
    http: httpx.Client, method: str, path: str, status: int, param: str | None
) -> None:
    response = http.request(method, path)
    assert (error_of(response)[0], error_of(response)[3]) == (status, param)
