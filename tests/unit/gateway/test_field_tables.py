"""docs/openai_fields.md tells the truth: it has every field of the openai client's types, and each row is as it says.

A new endpoint is one entry of `ENDPOINTS` and a section of the document. A field that changes its fate is one word
there; where it becomes honoured, its samples must hold everything that the client knows inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from gateway.errors import ApiError
from gateway.protocol.chat import ChatCompletionRequest
from gateway.protocol.completions import CompletionRequest
from gateway.protocol.fields import GenerationFields
from tests.support.client_fields import client_fields
from tests.support.field_table import Fate, Row, holds, row_for, rows_of

Body = dict[str, Any]

REFUSALS = frozenset(("unsupported_parameter", "unsupported_value"))
IN_REPLIES = {"messages[assistant].annotations"}
"""Of OpenAI's messages, which come back as part of a conversation, though the client's types of it do not say so."""
BREAKPOINT = {"mode": "explicit", "ttl": "30m"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def message(role: str, content: Any = "hi", **fields: Any) -> Body:
    return {"messages": [{"role": role, "content": content} | fields]}


def parts(role: str, *parts: Body) -> Body:
    return message(role, list(parts))


TEXT_PART = {"type": "text", "text": "hi"}

GENERATION_SAMPLES: dict[str, list[Body]] = {
    "model": [{"model": "some/model"}],
    "temperature": [{"temperature": 0.5}],
    "top_p": [{"top_p": 0.5}],
    "top_k": [{"top_k": 5}],
    "min_p": [{"min_p": 0.1}],
    "max_tokens": [{"max_tokens": 5}],
    "min_tokens": [{"min_tokens": 5}],
    "n": [{"n": 2}],
    "seed": [{"seed": 5}],
    "stop": [{"stop": "a"}, {"stop": ["a", "b"]}],
    "stop_token_ids": [{"stop_token_ids": [5]}],
    "presence_penalty": [{"presence_penalty": 0.5}],
    "frequency_penalty": [{"frequency_penalty": -0.5}],
    "repetition_penalty": [{"repetition_penalty": 1.2}],
    "logit_bias": [{"logit_bias": {"5": -100}}],
    "ignore_eos": [{"ignore_eos": True}],
    "use_prompt_format": [{"use_prompt_format": True}, {"use_prompt_format": False}],
    "stream": [{"stream": True}],
    "stream_options": [{"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}],
    "user": [{"user": "Ann"}],
    "prompt_cache_key": [{"prompt_cache_key": "terms"}],
    "structured_outputs": [{"structured_outputs": {"regex": "[a-z]+"}}],
    "metadata": [{"metadata": {"label": "a"}}],
    "moderation": [{"moderation": {"model": "omni", "policy": {"input": {"mode": "block"}}}}],
    "prompt_cache_options": [{"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}],
    "prompt_cache_retention": [{"prompt_cache_retention": "24h"}],
    "safety_identifier": [{"safety_identifier": "a"}],
    "service_tier": [{"service_tier": "flex"}],
    "store": [{"store": True}],
}

MESSAGE_SAMPLES: dict[str, list[Body]] = {
    **{f"messages[{role}]": [message(role)] for role in ("system", "developer", "user", "assistant")},
    **{f"messages[{role}].name": [message(role, name="Ann")] for role in ("system", "developer", "user", "assistant")},
    **{
        f"messages[{role}].content{kind}": [parts(role, TEXT_PART), parts(role, TEXT_PART, TEXT_PART)]
        for role, kind in (("system", ""), ("developer", ""), ("user", "[text]"), ("assistant", "[text]"))
    },
    **{
        f"messages[{role}].content{kind}.prompt_cache_breakpoint": [
            parts(role, {**TEXT_PART, "prompt_cache_breakpoint": BREAKPOINT})
        ]
        for role, kind in (("system", ""), ("developer", ""), ("user", "[text]"), ("assistant", "[text]"))
    },
    "messages[user].content[image_url]": [
        parts("user", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}})
    ],
    "messages[user].content[input_audio]": [
        parts("user", {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}})
    ],
    "messages[user].content[file]": [parts("user", {"type": "file", "file": {"file_id": "file-1"}})],
    "messages[assistant].content[refusal]": [parts("assistant", {"type": "refusal", "refusal": "no"})],
    "messages[assistant].refusal": [message("assistant", refusal="no")],
    "messages[assistant].audio": [message("assistant", audio={"id": "audio-1"})],
    "messages[assistant].function_call": [message("assistant", function_call={"name": "weather", "arguments": "{}"})],
    "messages[assistant].annotations": [message("assistant", annotations=[{"type": "url_citation"}])],
    "messages[assistant].tool_calls": [message("assistant", tool_calls=[CALL])],
    "messages[assistant].tool_calls[custom]": [
        message("assistant", tool_calls=[{"id": "1", "type": "custom", "custom": {"name": "a", "input": "b"}}])
    ],
    "messages[tool]": [
        message("tool", tool_call_id="call_1"),
        message("tool", [{**TEXT_PART, "prompt_cache_breakpoint": BREAKPOINT}], tool_call_id="call_1"),
    ],
    "messages[function]": [message("function", name="weather")],
}

CHAT_SAMPLES: dict[str, list[Body]] = {
    **GENERATION_SAMPLES,
    **MESSAGE_SAMPLES,
    "messages": [message("user")],
    "max_completion_tokens": [{"max_completion_tokens": 5}],
    "logprobs": [{"logprobs": True}],
    "top_logprobs": [{"logprobs": True, "top_logprobs": 2}],
    "response_format": [{"response_format": {"type": "text"}}],
    "response_format[json_object]": [{"response_format": {"type": "json_object"}}],
    "response_format[json_schema]": [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "description": "One.", "schema": SCHEMA, "strict": True},
            }
        }
    ],
    "tools": [{"tools": [TOOL]}],
    "tools[function]": [{"tools": [TOOL]}],
    "tools[custom]": [{"tools": [{"type": "custom", "custom": {"name": "code"}}]}],
    "tool_choice": [{"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": "required"}],
    "tool_choice[function]": [
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ],
    "tool_choice[custom]": [{"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "code"}}}],
    "tool_choice[allowed_tools]": [
        {
            "tools": [TOOL],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}},
        }
    ],
    "parallel_tool_calls": [{"parallel_tool_calls": False}],
    "functions": [{"functions": [{"name": "weather", "description": "Of a city.", "parameters": SCHEMA}]}],
    "function_call": [{"function_call": {"name": "weather"}}],
    "reasoning_effort": [{"reasoning_effort": "high"}],
    "verbosity": [{"verbosity": "low"}],
    "modalities": [{"modalities": ["text", "audio"]}],
    "audio": [{"audio": {"format": "wav", "voice": "alloy"}}],
    "prediction": [{"prediction": {"type": "content", "content": "hi"}}],
    "web_search_options": [{"web_search_options": {"search_context_size": "low"}}],
    "chat_template_kwargs": [{"chat_template_kwargs": {"enable_thinking": False}}],
}

TEXT_SAMPLES: dict[str, list[Body]] = {
    **GENERATION_SAMPLES,
    "prompt": [{"prompt": prompt} for prompt in ("a", ["a", "b"], [1, 2], [[1], [2]])],
    "best_of": [{"best_of": 2}],
    "logprobs": [{"logprobs": 2}],
    "echo": [{"echo": True}],
    "suffix": [{"suffix": "end"}],
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one section of the document is compared with."""

    heading: str
    client_params: Any
    request: type[GenerationFields]
    needed: Body
    samples: Mapping[str, list[Body]]

    def __str__(self) -> str:
        return self.heading

    def rows(self) -> tuple[Row, ...]:
        return rows_of(self.heading)

    def samples_of(self, row: Row) -> list[Body]:
        """Those of the row's field, or of what that is in and which hold it; and those of what the row says inside."""
        around = [path for path in self.samples if row.path == path or row.path.startswith((f"{path}.", f"{path}["))]
        inside = [path for path in self.samples if path != row.path and row_for(path, self.rows()) == row]
        of_it = [one for one in self.samples.get(max(around, key=len, default=""), ()) if holds(one, row.path)]
        return of_it + [one for path in inside for one in self.samples[path]]

    def parse(self, sample: Body) -> None:
        self.request.parse(json.dumps(self.needed | sample).encode(), max_choices=8)


ENDPOINTS = (
    Endpoint(
        "POST /v1/chat/completions",
        chat_params.CompletionCreateParams,
        ChatCompletionRequest,
        {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
        CHAT_SAMPLES,
    ),
    Endpoint(
        "POST /v1/completions",
        text_params.CompletionCreateParams,
        CompletionRequest,
        {"model": "m", "prompt": "hi"},
        TEXT_SAMPLES,
    ),
)


EVERY_ROW = [(endpoint, row) for endpoint in ENDPOINTS for row in endpoint.rows()]
HONOURED_AS_A_WHOLE = [(endpoint, row) for endpoint, row in EVERY_ROW if row.is_whole and row.fate is Fate.HONOURED]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_every_field_of_the_clients_types_has_a_row(endpoint: Endpoint) -> None:
    rows = endpoint.rows()
    assert [path for path in sorted(client_fields(endpoint.client_params)) if row_for(path, rows) is None] == []


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_every_field_that_the_server_knows_has_a_row(endpoint: Endpoint) -> None:
    known = set(endpoint.request.model_fields) | set(endpoint.request.without_effect)
    assert known - {row.path for row in endpoint.rows()} == set()


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_every_row_is_of_a_field_that_exists_and_no_field_has_two(endpoint: Endpoint) -> None:
    rows = endpoint.rows()
    known = (
        client_fields(endpoint.client_params)
        | set(endpoint.request.model_fields)
        | endpoint.request.without_effect.keys()
    )
    assert [row.path for row in rows if not any(row.covers(path) for path in known | IN_REPLIES)] == []
    assert len({row.path for row in rows if row.is_whole}) == sum(row.is_whole for row in rows)
    assert len({row.path for row in rows if not row.is_whole}) == sum(not row.is_whole for row in rows)


@pytest.mark.parametrize(("endpoint", "row"), EVERY_ROW, ids=str)
def test_a_row_is_what_the_server_does(endpoint: Endpoint, row: Row) -> None:
    samples = endpoint.samples_of(row)
    assert samples, f"no sample has '{row.path}'"
    for sample in samples:
        if row.fate is not Fate.REFUSED:
            endpoint.parse(sample)
            continue
        with pytest.raises(ApiError) as caught:
            endpoint.parse(sample)
        assert row.may_be_named(caught.value.param or ""), caught.value
        assert caught.value.code in REFUSALS


@pytest.mark.parametrize(("endpoint", "row"), HONOURED_AS_A_WHOLE, ids=str)
def test_what_is_honoured_as_a_whole_is_taken_with_everything_the_client_knows_inside(
    endpoint: Endpoint, row: Row
) -> None:
    rows, samples = endpoint.rows(), endpoint.samples_of(row)
    inside = [path for path in client_fields(endpoint.client_params) if row_for(path, rows) == row]
    assert [path for path in inside if not any(holds(sample, path) for sample in samples)] == []


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_the_openapi_document_says_so_of_each_field_without_effect(endpoint: Endpoint) -> None:
    said = {
        name
        for name, schema in endpoint.request.body_schema()["properties"].items()
        if "without effect" in schema.get("description", "").lower()
    }
    assert said == {row.path for row in endpoint.rows() if row.fate is Fate.NO_EFFECT and row.path.isidentifier()}
