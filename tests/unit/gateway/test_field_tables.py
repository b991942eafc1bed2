"""docs/openai_fields.md tells the truth: it has every field of the openai client's types, and each row is as it says.

A new endpoint is one entry of `ENDPOINTS` and a section of the document. A field that changes its fate is one word
there; where it becomes honoured, its samples must hold everything that the client knows inside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from openai.types import EmbeddingCreateParams
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from gateway.errors import ApiError
from gateway.protocol.chat import ChatCompletionRequest
from gateway.protocol.completions import CompletionRequest
from gateway.protocol.embeddings import EmbeddingRequest
from gateway.protocol.fields import Body as RequestBody
from gateway.protocol.response_create import ResponseRequest
from gateway.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from tests.support.client_fields import client_fields
from tests.support.field_samples import (
    CHAT_SAMPLES,
    DETOKENIZE_SAMPLES,
    EMBEDDING_SAMPLES,
    RESPONSE_SAMPLES,
    TEXT_SAMPLES,
    TOKENIZE_SAMPLES,
    Body,
    Samples,
)
from tests.support.field_table import Fate, Row, holds, row_for, rows_of

REFUSALS = frozenset(("unsupported_parameter", "unsupported_value"))
IN_REPLIES = {"messages[assistant].annotations"}
"""Of OpenAI's messages, which come back as part of a conversation, though the client's types of it do not say so."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one section of the document is compared with."""

    heading: str
    client_params: Any
    """None where the client has no such call."""
    request: type[RequestBody]
    needed: Body
    samples: Samples

    def __str__(self) -> str:
        return self.heading

    def rows(self) -> tuple[Row, ...]:
        return rows_of(self.heading)

    def samples_of(self, row: Row) -> list[Body]:
        """Those of the row's field, or of what that is in and which hold it; and those of what the row says inside."""
        around = [path for path in self.samples if row.path == path or row.path.startswith((f"{path}.", f"{path}["))]
        inside = [path for path in self.samples if path != row.path and row_for(path, self.heading) == row]
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
    Endpoint(
        "POST /v1/responses",
        response_create_params.ResponseCreateParams,
        ResponseRequest,
        {"model": "m", "input": "hi"},
        RESPONSE_SAMPLES,
    ),
    Endpoint(
        "POST /v1/embeddings",
        EmbeddingCreateParams,
        EmbeddingRequest,
        {"model": "m", "input": "hi"},
        EMBEDDING_SAMPLES,
    ),
    Endpoint("POST /v1/tokenize", None, TokenizeRequest, {"model": "m", "prompt": "hi"}, TOKENIZE_SAMPLES),
    Endpoint("POST /v1/detokenize", None, DetokenizeRequest, {"model": "m", "tokens": [1]}, DETOKENIZE_SAMPLES),
)


EVERY_ROW = [(endpoint, row) for endpoint in ENDPOINTS for row in endpoint.rows()]
HONOURED_AS_A_WHOLE = [(endpoint, row) for endpoint, row in EVERY_ROW if row.is_whole and row.fate is Fate.HONOURED]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_every_field_of_the_clients_types_has_a_row(endpoint: Endpoint) -> None:
    fields = sorted(client_fields(endpoint.client_params))
    assert [path for path in fields if row_for(path, endpoint.heading) is None] == []


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
    samples = endpoint.samples_of(row)
    inside = [path for path in client_fields(endpoint.client_params) if row_for(path, endpoint.heading) == row]
    assert [path for path in inside if not any(holds(sample, path) for sample in samples)] == []


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_the_openapi_document_says_so_of_each_field_without_effect(endpoint: Endpoint) -> None:
    said = {
        name
        for name, schema in endpoint.request.body_schema()["properties"].items()
        if "without effect" in schema.get("description", "").lower()
    }
    assert said == {row.path for row in endpoint.rows() if row.fate is Fate.NO_EFFECT and row.path.isidentifier()}
