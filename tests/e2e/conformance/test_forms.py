"""The form of a text: JSON, schemas, expressions, choices and grammars, with what else shapes an answer; and echo.

The echo engine says its prompt where the form lets it, so whatever fits is due to the form.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.conftest import Server
from tests.support.conformance import Endpoint, Fields, across, both_ways, error_of, one_by_one
from tests.support.conformance_cases import (
    CHAT,
    CHAT_FIELDS,
    CHAT_PARAMETERS,
    ECHO,
    ENDPOINTS,
    INTERACTING,
    MESSAGES,
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

PLACE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["small", "large"]},
        "river": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
    },
    "required": ["name", "size", "river"],
    "additionalProperties": False,
}
STRUCTURED: dict[str, Fields] = {
    "a regular expression": {"structured_outputs": {"regex": "[a-z]+ [a-zï]{2,4}"}},
    "a choice": {"structured_outputs": {"choice": ["yes", "no", "naïve"]}},
    "a grammar": {"structured_outputs": {"grammar": 'start: WORD ("," WORD)*\nWORD: /[a-zö]{1,5}/'}},
    "a grammar of llama.cpp's": {"structured_outputs": {"grammar": 'root ::= "he" [a-z]+ " "? [a-z]*'}},
    "a schema": {"structured_outputs": {"json": PLACE}},
    "a schema as text": {"structured_outputs": {"json": json.dumps(PLACE)}},
    "an object": {"structured_outputs": {"json_object": True}},
}
CHAT_FORMS: dict[str, Fields] = {
    **STRUCTURED,
    "OpenAI's object": {"response_format": {"type": "json_object"}},
    "OpenAI's schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE, "strict": True}}
    },
}
OTHERS = {name: CHAT_PARAMETERS[name] for name in INTERACTING}
TEXT_OTHERS = {name: TEXT_PARAMETERS[name] for name in (*INTERACTING, "several prompts", "token ids")}
PATTERNS = {
    "[a-z]+ ": r"[a-z]+ [a-zï]{2,4}",
    "start:": r"[a-zö]{1,5}(,[a-zö]{1,5})*",
    "root ::=": r"he[a-z]+ ?[a-z]*",
}


def fits(fields: Fields, text: str) -> bool:
    """Whether a text that was not cut has the form that the fields ask for."""
    form = fields.get("structured_outputs") or fields["response_format"]
    if "choice" in form:
        return text in form["choice"]
    if source := form.get("regex") or form.get("grammar"):
        return bool(re.fullmatch(next(pattern for name, pattern in PATTERNS.items() if source.startswith(name)), text))
    value = json.loads(text)
    has_schema = "json" in form or "json_schema" in form
    return bool(jsonschema.Draft202012Validator(PLACE if has_schema else {"type": "object"}).is_valid(value))


def check(http: httpx.Client, endpoint: Endpoint, fields: Fields) -> None:
    answered = both_ways(http, endpoint, ECHO, fields)
    for answer, reason in zip(answered.answers, answered.finish_reasons, strict=True):
        if reason == "stop" and not fields.get("stop") and not fields.get("stop_token_ids"):
            assert fits(fields, answer.get("content", answer.get("text", "")))


@pytest.mark.parametrize("fields", one_by_one(CHAT_FORMS) + across(CHAT_FORMS, OTHERS))
def test_a_chat_has_the_form_it_was_asked_for_streamed_and_whole(http: httpx.Client, fields: Fields) -> None:
    check(http, CHAT, fields)


@pytest.mark.parametrize("fields", one_by_one(STRUCTURED) + across(STRUCTURED, TEXT_OTHERS))
def test_a_text_has_the_form_it_was_asked_for_streamed_and_whole(http: httpx.Client, fields: Fields) -> None:
    check(http, TEXT, fields)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("a regular expression", "hello naïv"),
        ("a choice", "naïve"),
        ("a grammar of llama.cpp's", "hello na"),
        ("OpenAI's object", '{"llo naïve wörld 🙂":"llo naïve wörld 🙂"}'),
    ],
)
def test_the_echo_says_what_the_form_lets_it_say(http: httpx.Client, form: str, text: str) -> None:
    assert [answer["content"] for answer in both_ways(http, CHAT, ECHO, CHAT_FORMS[form]).answers] == [text]


@pytest.mark.parametrize("form", ["OpenAI's object", "OpenAI's schema"])
def test_a_form_holds_beside_tools_where_no_call_is_made(http: httpx.Client, form: str) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    fields = {**CHAT_FORMS[form], "tools": tools}
    (answer,) = both_ways(http, CHAT, ECHO, fields).answers
    assert "tool_calls" in answer or fits(fields, answer["content"])


def test_a_model_that_would_say_something_else_fits_too(http: httpx.Client) -> None:
    fields = {**CHAT_FORMS["a choice"], "temperature": 1.5, "seed": 4}
    (answer,) = both_ways(http, CHAT, SMOLLM2, fields).answers
    assert fits(fields, answer["content"])


# Through the client


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class River(BaseModel):
    name: str
    length_km: int | None


class Place(BaseModel):
    """Nested, with an enum, what may be missing, and lists."""

    name: str
    size: Size
    is_capital: bool
    river: River | None
    sights: list[River]


@pytest.mark.parametrize("fields", one_by_one(CHAT_FORMS))
def test_the_strict_client_takes_every_form(strict_client: openai.OpenAI, fields: Fields) -> None:
    request = as_client_call({**CHAT.needed, **fields}, CHAT_FIELDS)
    strict_client.chat.completions.create(model=ECHO, **request)
    list(strict_client.chat.completions.create(model=ECHO, stream=True, **request))


class Opinion(BaseModel):
    size: Size
    is_sure: bool


@pytest.mark.parametrize("model", [ECHO, SMOLLM2])
def test_the_clients_parse_helper_makes_models_of_each_choice(client: openai.OpenAI, model: str) -> None:
    parsed = client.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Opinion, n=2, logprobs=True, seed=1, temperature=1.5
    )
    assert [type(choice.message.parsed) for choice in parsed.choices] == [Opinion, Opinion]


def test_the_clients_parse_helper_makes_nested_models(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(model=ECHO, messages=MESSAGES, response_format=Place)
    assert isinstance(parsed.choices[0].message.parsed, Place)


def test_a_parsed_answer_goes_back_as_it_came(client: openai.OpenAI) -> None:
    message: Any = (
        client.chat.completions.parse(model=ECHO, messages=MESSAGES, response_format=River).choices[0].message
    )
    with pytest.warns(UserWarning, match="Pydantic serializer warnings"):  # the client's, of what its helper has made
        again = client.chat.completions.create(model=ECHO, messages=[*MESSAGES, message])
    assert again.choices[0].message.content == f"{SAID}\n{message.content}"


def test_the_clients_stream_helper_makes_a_model_at_the_end(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=ECHO, messages=MESSAGES, response_format=Place) as stream:
        [done] = [event for event in stream if event.type == "content.done"]
        final = stream.get_final_completion()
    assert isinstance(done.parsed, Place)
    assert final.choices[0].message.parsed == done.parsed


async def test_the_async_clients_helpers_do_too(server: Server) -> None:
    async with server.async_client as client:
        parsed = await client.chat.completions.parse(model=ECHO, messages=MESSAGES, response_format=Place)
        async with client.chat.completions.stream(model=ECHO, messages=MESSAGES, response_format=Place) as stream:
            streamed = await stream.get_final_completion()
    assert isinstance(parsed.choices[0].message.parsed, Place)
    assert streamed.choices[0].message.parsed == parsed.choices[0].message.parsed


def test_an_answer_that_is_cut_raises_the_clients_own_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=ECHO, messages=MESSAGES, response_format=Place, max_tokens=9)
    with (
        pytest.raises(openai.LengthFinishReasonError),
        client.chat.completions.stream(model=ECHO, messages=MESSAGES, response_format=Place, max_tokens=9) as stream,
    ):
        list(stream)


# Errors


def schema(of: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": of}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": {"name": "it"}}}, "invalid_value",
         "response_format.json_schema"),
        (schema(7), "invalid_type", "response_format.json_schema.schema"),
        (schema({"type": "thing"}), "invalid_value", "response_format.json_schema.schema"),
        (schema({"$ref": "#/$defs/missing"}), "invalid_value", "response_format.json_schema.schema"),
        ({**CHAT_FORMS["OpenAI's object"], **STRUCTURED["a choice"]}, "invalid_value", "structured_outputs"),
    ],
)  # fmt: skip
def test_a_wrong_format_is_named_with_its_code(
    http: httpx.Client, fields: Fields, code: str, param: str, stream: bool
) -> None:
    response = http.post(CHAT.path, json=CHAT.body(ECHO, {"stream": stream, **fields}))
    assert error_of(response) == (400, "invalid_request_error", code, param)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("structured", "code", "param"),
    [
        ({}, "invalid_value", "structured_outputs"),
        ({"regex": "a", "choice": ["a"]}, "invalid_value", "structured_outputs"),
        ({"regex": "("}, "invalid_value", "structured_outputs.regex"),
        ({"regex": ""}, "empty_string", "structured_outputs.regex"),
        ({"choice": []}, "empty_array", "structured_outputs.choice"),
        ({"grammar": "start: missing"}, "invalid_value", "structured_outputs.grammar"),
        ({"grammar": "root ::= missing"}, "invalid_value", "structured_outputs.grammar"),
        ({"json": "{"}, "invalid_value", "structured_outputs.json"),
        ({"json": {"type": "thing"}}, "invalid_value", "structured_outputs.json"),
        ({"structural_tag": "{}"}, "unsupported_parameter", "structured_outputs.structural_tag"),
        ({"colour": "red"}, "unknown_parameter", "structured_outputs.colour"),
    ],
)
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_a_wrong_form_is_named_with_its_code(
    http: httpx.Client, endpoint: Endpoint, structured: Fields, code: str, param: str, stream: bool
) -> None:
    fields = {"stream": stream, "structured_outputs": structured}
    response = http.post(endpoint.path, json=endpoint.body(ECHO, fields))
    assert error_of(response) == (400, "invalid_request_error", code, param)


# Echo, infilling and going on

ECHOED: dict[str, Fields] = {
    "echoed": {"echo": True},
    "echoed only": {"echo": True, "max_tokens": 0, "min_tokens": None},
    "echoed with logprobs": {"echo": True, "logprobs": 2},
}
CONTRADICTING = [(one, "its format") for one in ECHOED]


@pytest.mark.parametrize("fields", one_by_one(ECHOED) + across(ECHOED, for_pairs(TEXT_PARAMETERS), but=CONTRADICTING))
def test_a_streamed_echo_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    answered = both_ways(http, TEXT, ECHO, fields)
    if fields.get("max_tokens") == 0:
        assert set(answered.finish_reasons) == {"length"}


@pytest.mark.parametrize("form", STRUCTURED)
def test_a_form_is_of_what_comes_after_an_echoed_prompt(http: httpx.Client, form: str) -> None:
    (answer,) = both_ways(http, TEXT, ECHO, {**STRUCTURED[form], "echo": True}).answers
    assert fits(STRUCTURED[form], answer["text"].removeprefix(SAID))


def test_an_echo_stands_before_each_choice_and_its_logprobs_before_theirs(http: httpx.Client) -> None:
    prompts = ["one", "zwei 🙂"]
    fields = {"prompt": prompts, "n": 2, "echo": True, "logprobs": 1, "max_tokens": 3}
    answered = both_ways(http, TEXT, ECHO, fields)
    said = ["oneone", "oneone", "zwei 🙂zwe", "zwei 🙂zwe"]
    assert [answer["text"] for answer in answered.answers] == said
    for answer, prompt in zip(answered.answers, [prompt for prompt in prompts for _ in range(2)], strict=True):
        logprobs = answer["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        assert len(logprobs["tokens"]) == len(prompt.encode()) + 1 + 3  # with the end of the prompt
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_an_echo_of_token_ids_is_their_text(http: httpx.Client) -> None:
    (answer,) = both_ways(http, TEXT, ECHO, {"prompt": [104, 105], "echo": True, "max_tokens": 0}).answers
    assert answer["text"] == "hi"


@pytest.mark.parametrize("form", ["echoed", "echoed only"])
def test_the_strict_client_takes_an_echo(strict_client: openai.OpenAI, form: str) -> None:
    """Without logprobs: by its types the first token has some too, which OpenAI's own had not."""
    request = as_client_call({**TEXT.needed, **ECHOED[form]}, TEXT_FIELDS)
    strict_client.completions.create(model=ECHO, **without_stream_options(request))


def test_an_echo_of_a_real_model_says_what_each_of_its_tokens_was_worth(http: httpx.Client) -> None:
    fields = {"prompt": "The capital of France is", "echo": True, "logprobs": 1, "max_tokens": 2, "temperature": 0}
    (answer,) = both_ways(http, TEXT, SMOLLM2, fields).answers
    tokens = answer["logprobs"]["tokens"]
    assert "".join(tokens) == answer["text"]
    assert answer["text"].startswith("The capital of France is")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"suffix": "end"}, "invalid_value", "suffix"),
        ({"suffix": "end", "echo": True}, "invalid_value", "suffix"),
        ({"suffix": "end", "prompt": [1]}, "invalid_value", "suffix"),
        ({"echo": True, "use_prompt_format": True}, "invalid_value", "echo"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
    ],
)
def test_what_does_not_go_with_an_echo_or_a_suffix_is_named(
    http: httpx.Client, fields: Fields, code: str, param: str, stream: bool
) -> None:
    response = http.post(TEXT.path, json=TEXT.body(ECHO, {"stream": stream, **fields}))
    assert error_of(response) == (400, "invalid_request_error", code, param)


def test_an_empty_suffix_is_none(http: httpx.Client) -> None:
    assert both_ways(http, TEXT, ECHO, {"suffix": ""}) == both_ways(http, TEXT, ECHO, {})


GOING_ON: dict[str, Fields] = {
    "going on": {
        "messages": [*MESSAGES, {"role": "assistant", "content": "It is"}],
        "continue_final_message": True,
    },
    "going on, said twice": {
        "messages": [*MESSAGES, {"role": "assistant", "content": "It is"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
}


@pytest.mark.parametrize("fields", one_by_one(GOING_ON) + across(GOING_ON, OTHERS))
def test_a_streamed_continuation_is_the_whole_one(http: httpx.Client, fields: Fields) -> None:
    both_ways(http, CHAT, ECHO, fields)


def test_a_continuation_of_a_real_model_goes_on_with_the_message(http: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": "Count from one to six, in words."},
        {"role": "assistant", "content": "one, two, three, four,"},
    ]
    fields = {"messages": messages, "continue_final_message": True, "temperature": 0, "max_tokens": 4}
    (answer,) = both_ways(http, CHAT, SMOLLM2, fields).answers
    assert "five" in answer["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({**GOING_ON["going on"], "add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_a_continuation_of_nothing_is_refused(http: httpx.Client, fields: Fields, param: str) -> None:
    response = http.post(CHAT.path, json=CHAT.body(ECHO, fields))
    assert error_of(response) == (400, "invalid_request_error", "invalid_value", param)
