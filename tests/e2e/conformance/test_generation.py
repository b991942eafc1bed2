"""Completions and chats, for every parameter, alone and in pairs, streamed and whole; and models, and errors.

Faults, overload, shutdown and disconnects are in tests/integration/test_gateway_*.py.
"""

from __future__ import annotations

import asyncio
import json
from urllib.parse import quote

import httpx
import openai
import pytest

from tests.e2e.conftest import Server
from tests.support.conformance import Endpoint, Fields, both_ways, error_of, in_pairs, one_by_one
from tests.support.conformance_cases import (
    CHAT,
    CHAT_FIELDS,
    CHAT_PARAMETERS,
    ECHO,
    ENDPOINTS,
    MESSAGES,
    MODELS,
    NEEDS_TEXT,
    SAID,
    SMOLLM2,
    TEXT,
    TEXT_FIELDS,
    TEXT_PARAMETERS,
    as_client_call,
    for_pairs,
    without_stream_options,
)

pytestmark = pytest.mark.timeout(600)  # the first start may have to fetch the model

# Streamed and whole


@pytest.mark.parametrize("fields", one_by_one(TEXT_PARAMETERS) + in_pairs(for_pairs(TEXT_PARAMETERS), but=NEEDS_TEXT))
def test_a_streamed_text_of_the_echo_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    both_ways(http, TEXT, ECHO, fields)


@pytest.mark.parametrize("fields", one_by_one(CHAT_PARAMETERS) + in_pairs(for_pairs(CHAT_PARAMETERS)))
def test_a_streamed_chat_of_the_echo_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    both_ways(http, CHAT, ECHO, fields)


REAL: dict[str, Fields] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.2, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "n": 3},
    "penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {"28": -5},
    },
    "a stop": {"stop": [" ", "."], "temperature": 0},
}
REAL_TEXT: dict[str, Fields] = {**REAL, "logprobs": {"logprobs": 2, "n": 2, "prompt": ["Once upon", "It is"]}}
REAL_CHAT: dict[str, Fields] = {**REAL, "logprobs": {"logprobs": True, "top_logprobs": 2, "n": 2}}
SHORT: Fields = {"max_tokens": 6, "seed": 5, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("fields", one_by_one(REAL_TEXT))
def test_a_streamed_text_of_a_real_model_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    both_ways(http, TEXT, SMOLLM2, {"prompt": "The capital of France is", **SHORT, **fields})


@pytest.mark.parametrize("fields", one_by_one(REAL_CHAT))
def test_a_streamed_chat_of_a_real_model_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    both_ways(http, CHAT, SMOLLM2, {"messages": [{"role": "user", "content": "Where is Paris?"}], **SHORT, **fields})


# What the echo says


@pytest.mark.parametrize(
    ("fields", "text", "reason", "num_tokens"),
    [
        ({}, SAID, "stop", 25),
        ({"max_tokens": 1}, "h", "length", 1),
        ({"max_tokens": 8}, "hello na", "length", 8),
        ({"max_tokens": 9}, "hello na\N{REPLACEMENT CHARACTER}", "length", 9),
        ({"max_tokens": 10}, "hello naï", "length", 10),
        ({"max_tokens": 24}, SAID, "length", 24),
        ({"stop": "wör"}, "hello naïve ", "stop", 17),
        ({"stop": "h"}, "", "stop", 1),
        ({"stop": ["ö", "llo"]}, "he", "stop", 5),
        ({"stop": "🙂"}, "hello naïve wörld ", "stop", 24),
        ({"stop": "z"}, SAID, "stop", 25),
        ({"stop": "hello", "min_tokens": 6}, SAID, "stop", 25),
        ({"stop_token_ids": [32]}, "hello", "stop", 6),
        ({"ignore_eos": True, "max_tokens": 30}, SAID + "hello", "length", 30),
        ({"min_tokens": 26}, f"{SAID} {SAID}", "stop", 50),
    ],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_limits_and_stops_cut_where_they_say(
    http: httpx.Client, endpoint: Endpoint, fields: Fields, text: str, reason: str, num_tokens: int
) -> None:
    answered = both_ways(http, endpoint, ECHO, {**fields, "stream_options": {"include_usage": True}})
    (answer,) = answered.answers
    assert answer.get("text", answer.get("content", "")) == text
    assert answered.finish_reasons == [reason]
    assert answered.usage is not None
    assert answered.usage["completion_tokens"] == num_tokens


def test_each_prompt_is_answered_in_its_place(http: httpx.Client) -> None:
    prompts = ["one", "zwei 🙂", "", "four"]
    fields = {"prompt": prompts, "n": 2}
    assert [one["text"] for one in both_ways(http, TEXT, ECHO, fields).answers] == [
        prompt for prompt in prompts for _ in range(2)
    ]


def test_the_logprobs_of_both_shapes_say_the_same(http: httpx.Client) -> None:
    text = TEXT.ask(http, ECHO, {"logprobs": 2}).answers[0]["logprobs"]
    chat = CHAT.ask(http, ECHO, {"logprobs": True, "top_logprobs": 2}).answers[0]["logprobs"]
    assert text["token_logprobs"] == [token["logprob"] for token in chat["content"]]
    assert b"".join(bytes(token["bytes"] or []) for token in chat["content"]).decode() == SAID
    assert [SAID[offset] for offset in text["text_offset"][:5]] == list("hello")
    assert text["text_offset"] == sorted(text["text_offset"])


# Through the client


@pytest.mark.parametrize("fields", one_by_one(TEXT_PARAMETERS))
def test_the_strict_client_takes_every_text(strict_client: openai.OpenAI, fields: Fields) -> None:
    """Whole ones only: by its types a chunk of a text always has a finish reason, which OpenAI's own do not."""
    request = as_client_call({**TEXT.needed, **fields}, TEXT_FIELDS)
    strict_client.completions.create(model=ECHO, **without_stream_options(request))


@pytest.mark.parametrize("fields", one_by_one(CHAT_PARAMETERS))
def test_the_strict_client_takes_every_chat(strict_client: openai.OpenAI, fields: Fields) -> None:
    request = as_client_call({**CHAT.needed, **fields}, CHAT_FIELDS)
    strict_client.chat.completions.create(model=ECHO, **without_stream_options(request))
    list(strict_client.chat.completions.create(model=ECHO, stream=True, **request))


def test_the_clients_stream_helper_tells_events_as_of_openai(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=ECHO, messages=MESSAGES, logprobs=True, stream_options={"include_usage": True}
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = {event.type for event in events}
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= kinds
    assert "".join(event.delta for event in events if event.type == "content.delta") == SAID
    assert [event.content for event in events if event.type == "content.done"] == [SAID]
    assert final.choices[0].message.content == SAID
    assert final.usage is not None
    assert final.usage.completion_tokens == 25


async def test_the_async_clients_stream_helper_does_too(server: Server) -> None:
    async with (
        server.async_client as client,
        client.chat.completions.stream(model=ECHO, messages=MESSAGES, n=2) as stream,
    ):
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert sorted("".join(deltas)) == sorted(SAID * 2)
    assert [choice.message.content for choice in final.choices] == [SAID] * 2


def test_the_clients_parse_helper_takes_an_answer_without_a_format(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model=ECHO, messages=MESSAGES)
    assert (parsed.choices[0].message.content, parsed.choices[0].message.parsed) == (SAID, None)


def test_the_client_shows_headers_and_raw_lines(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=ECHO, messages=MESSAGES)
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    assert int(raw.headers["openai-processing-ms"]) >= 0
    with client.completions.with_streaming_response.create(model=ECHO, prompt="hi", stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


async def test_the_async_client_runs_many_at_once(server: Server) -> None:
    async with server.async_client as client:

        async def say(text: str) -> str:
            stream = await client.completions.create(model=ECHO, prompt=text, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = [f"number {index}" for index in range(16)]
        assert await asyncio.gather(*map(say, texts)) == texts


# Models


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == set(MODELS)
    for model_id, model in listed.items():
        assert client.models.retrieve(model_id).created == model.created
        assert (model.object, model.owned_by) == ("model", model_id.partition("/")[0])


@pytest.mark.parametrize("path", ["tests/echo", "tests%2Fecho", "tests%2fecho", "%74ests/echo"])
def test_a_model_is_found_however_its_slash_is_written(http: httpx.Client, path: str) -> None:
    response = http.get(f"/v1/models/{path}")
    assert response.json()["id"] == ECHO


@pytest.mark.parametrize(
    "path",
    ["tests", "echo", "tests/echo/", "/tests/echo", "Tests/Echo", "tests//echo", "%2e%2e", "%00", "a" * 2000],
)
def test_a_model_that_is_not_there_is_not_found(http: httpx.Client, path: str) -> None:
    response = http.get(f"/v1/models/{quote(path, safe='%')}")
    assert error_of(response) == (404, "invalid_request_error", "model_not_found", None)


# Errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "no/such"}, 404, "model_not_found", None),
        ({"model": ""}, 404, "model_not_found", None),
        ({"model": None}, 400, "invalid_type", "model"),
        ({"temperature": "hot"}, 400, "invalid_type", "temperature"),
        ({"temperature": 2.5}, 400, "decimal_above_max_value", "temperature"),
        ({"temperature": -0.1}, 400, "decimal_below_min_value", "temperature"),
        ({"top_p": 1.1}, 400, "decimal_above_max_value", "top_p"),
        ({"max_tokens": 0}, 400, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": 1.5}, 400, "invalid_type", "max_tokens"),
        ({"n": 99}, 400, "integer_above_max_value", "n"),
        ({"n": "2"}, 400, "invalid_type", "n"),
        ({"seed": 2**64}, 400, "integer_above_max_value", "seed"),
        ({"stop": [""]}, 400, "empty_string", "stop[0]"),
        ({"stop": ["a"] * 17}, 400, "array_above_max_length", "stop"),
        ({"stop_token_ids": [9999]}, 400, "invalid_value", "stop_token_ids"),
        ({"logit_bias": {"9999": 1}}, 400, "invalid_value", "logit_bias"),
        ({"logit_bias": {"hello": 1}}, 400, "invalid_value", "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "integer_above_max_value", "min_tokens"),
        ({"stream_options": {"usage": True}, "stream": True}, 400, "unknown_parameter", "stream_options.usage"),
        ({"stream_options": {"include_usage": True}, "stream": False}, 400, "invalid_value", "stream_options"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
    ],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_a_wrong_field_is_named_with_its_code(
    http: httpx.Client,
    endpoint: Endpoint,
    fields: Fields,
    status: int,
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    response = http.post(endpoint.path, json=endpoint.body(ECHO, {"stream": stream, **fields}))
    assert error_of(response) == (status, "invalid_request_error", code, param)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("endpoint", "fields", "code", "param"),
    [
        (TEXT, {"prompt": []}, "empty_array", "prompt"),
        (TEXT, {"prompt": ["a", 1]}, "invalid_type", "prompt"),
        (TEXT, {"prompt": [300]}, "invalid_value", "prompt"),
        (TEXT, {"prompt": "a" * 5000}, "context_length_exceeded", "prompt"),
        (TEXT, {"max_tokens": 5000}, "context_length_exceeded", "prompt"),
        (TEXT, {"logprobs": 6}, "integer_above_max_value", "logprobs"),
        (TEXT, {"n": 3, "best_of": 2}, "integer_below_min_value", "best_of"),
        (TEXT, {"prompt": [1, 2], "use_prompt_format": True}, "invalid_value", "prompt"),
        (TEXT, {"messages": []}, "unknown_parameter", "messages"),
        (CHAT, {"messages": []}, "empty_array", "messages"),
        (CHAT, {"messages": "hi"}, "invalid_type", "messages"),
        (CHAT, {"messages": [{"role": "robot", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        (CHAT, {"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 5000}]}, "context_length_exceeded", "messages"),
        (CHAT, {"max_completion_tokens": 5000}, "context_length_exceeded", "messages"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        (CHAT, {"top_logprobs": 2}, None, "top_logprobs"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "invalid_value", "max_completion_tokens"),
        (CHAT, {"prompt": "hi"}, "unknown_parameter", "prompt"),
    ],
)
def test_a_wrong_field_of_one_endpoint_is_named_with_its_code(
    http: httpx.Client, endpoint: Endpoint, fields: Fields, code: str | None, param: str, stream: bool
) -> None:
    response = http.post(endpoint.path, json=endpoint.body(ECHO, {"stream": stream, **fields}))
    assert error_of(response) == (400, "invalid_request_error", code, param)


@pytest.mark.parametrize("missing", ["model", "prompt"])
def test_a_missing_field_is_named(http: httpx.Client, missing: str) -> None:
    body = {name: value for name, value in TEXT.body(ECHO, {}).items() if name != missing}
    assert error_of(http.post(TEXT.path, json=body))[2:] == ("missing_required_parameter", missing)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"model=tests/echo",
        b"{'model': 'tests/echo'}",
        b'{"model": "tests/echo",}',
        b'{"model": "tests/echo"} {}',
        b'{"model": "tests/echo", "model": "tests/echo"}',
        b'{"logit_bias": {"1": 1, "1": 2}}',
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"1" * 50 + b"}",
        b'{"user": "\\ud800"}',
        b'{"user": "\xff"}',
        b'{"user": "\x00"}',
        '{"model": "m"}'.encode("utf-16"),
        '\ufeff{"model": "m"}'.encode(),
        b'{"metadata": ' + b"[" * 65 + b"]" * 65 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda content: repr(content[:30]),
)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_a_body_that_is_not_an_object_of_json_is_refused(
    http: httpx.Client, endpoint: Endpoint, content: bytes
) -> None:
    response = http.post(endpoint.path, content=content, headers={"content-type": "application/json"})
    assert error_of(response) == (400, "invalid_request_error", None, None)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=a"},
        {"content-type": "application/jsonl"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_a_body_of_another_type_is_refused(http: httpx.Client, endpoint: Endpoint, headers: dict[str, str]) -> None:
    content = json.dumps(endpoint.body(ECHO, {})).encode()
    assert error_of(http.post(endpoint.path, content=content, headers=headers))[:2] == (415, "invalid_request_error")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
def test_json_is_taken_under_its_other_names(http: httpx.Client, media_type: str) -> None:
    content = json.dumps(TEXT.body(ECHO, {})).encode()
    assert http.post(TEXT.path, content=content, headers={"content-type": media_type}).status_code == 200


def test_a_body_of_more_than_four_mebibytes_is_too_large(http: httpx.Client) -> None:
    response = http.post(TEXT.path, json=TEXT.body(ECHO, {"prompt": "a" * 2**22}))
    assert error_of(response) == (413, "invalid_request_error", "request_too_large", None)
    assert http.post(TEXT.path, json=TEXT.body(ECHO, {"metadata": {"a": "b" * 2**21}})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/nothing", 404),
        ("POST", "/chat/completions", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/V1/chat/completions", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/completions", 405),
        ("DELETE", "/v1/completions", 405),
        ("PATCH", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/tests/echo", 405),
        ("OPTIONS", "/v1/models", 405),
    ],
)
def test_a_wrong_url_or_method_is_told_as_openai_does(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert error_of(response) == (status, "invalid_request_error", "unknown_url", None)
    assert ("allow" in response.headers) == (status == 405)


def test_an_admin_endpoint_without_a_key_of_the_operators_is_closed(http: httpx.Client) -> None:
    assert error_of(http.post("/admin/reload")) == (403, "invalid_request_error", "admin_closed", None)
