"""The OpenAPI document: complete in itself, and true of what the server takes and sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest

from gateway import errors
from gateway.answer import Answer
from gateway.chat_shape import ChatShape
from gateway.completions import FinishedChoice
from gateway.error_bodies import message_error
from gateway.errors import ApiError
from gateway.protocol import openapi
from gateway.protocol.batches import BatchRequest
from gateway.protocol.chat import ChatCompletionRequest
from gateway.protocol.completions import CompletionRequest
from gateway.protocol.embeddings import EmbeddingRequest
from gateway.protocol.fields import Body
from gateway.protocol.message_create import CountTokensRequest, MessageRequest
from gateway.protocol.response_create import ResponseRequest
from gateway.protocol.responses import PromptTokensDetails, Reply, Usage, encode
from gateway.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from gateway.text_shape import TextShape
from tests.support.openapi_document import COPY, as_text, document

DOCUMENT = document()
REQUESTS: dict[str, type[Body]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessageRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/tokenize": TokenizeRequest,
    "/v1/detokenize": DetokenizeRequest,
}
UPLOAD, BATCHES = "/v1/files", "/v1/batches"
"""Whose bodies are about no model."""
USAGE = Usage(
    prompt_tokens=1, completion_tokens=1, total_tokens=2, prompt_tokens_details=PromptTokensDetails(cached_tokens=0)
)
ANSWERED = [FinishedChoice(0, Answer("hi"), "stop")]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def referred_to(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from (value for key, value in part.items() if key == "$ref")
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from referred_to(inner)


def body_of(path: str) -> dict[str, Any]:
    content: dict[str, dict[str, Any]] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    (form,) = content.values()
    return form


def undescribed(schema: Any, path: str = "") -> Iterator[str]:
    """Properties that say nothing about themselves."""
    if isinstance(schema, list):
        for part in schema:
            yield from undescribed(part, path)
    elif isinstance(schema, dict):
        for name, one in schema.get("properties", {}).items():
            if not one.get("description"):
                yield f"{path}.{name}"
            yield from undescribed(one, f"{path}.{name}")
        for key in ("anyOf", "oneOf", "allOf", "items", "additionalProperties"):
            yield from undescribed(schema.get(key), path)


def conforms(value: bytes, name: str) -> None:
    jsonschema.validate(
        json.loads(value), {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def all_errors(kind: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    for child in kind.__subclasses__():
        yield child
        yield from all_errors(child)


def test_the_copy_in_the_docs_is_the_document() -> None:
    assert COPY.read_text(encoding="utf-8") == as_text(DOCUMENT), "run `python -m tests.support.openapi_document`"


def test_everything_that_is_referred_to_is_there() -> None:
    for reference in set(referred_to(DOCUMENT)):
        part: Any = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part


def test_every_operation_says_what_success_is_and_that_errors_are_openais_or_anthropics() -> None:
    for path, method, operation in operations():
        responses = operation["responses"]
        for content in responses["200"]["content"].values():
            assert content.get("schema") or content["itemSchema"], f"{method} {path}"
        error = "MessageError" if path.startswith("/v1/messages") else "Error"
        for status in set(responses) - {"200"}:
            content = responses[status]["content"]
            assert content == {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}}, (
                f"{path} {status}"
            )
        assert {"500", "default"} <= set(responses)
        assert "422" not in responses, "no error of ours has that status"


@pytest.mark.parametrize("path", [*REQUESTS, UPLOAD, BATCHES])
def test_every_field_of_a_body_is_described(path: str) -> None:
    assert list(undescribed(body_of(path)["schema"])) == []


@pytest.mark.parametrize("path", REQUESTS)
def test_the_example_of_a_body_is_one(path: str) -> None:
    content = body_of(path)
    jsonschema.validate(content["example"], content["schema"])
    REQUESTS[path].parse(json.dumps(content["example"]).encode(), max_choices=1)


def test_the_example_of_a_batch_is_one() -> None:
    content = body_of(BATCHES)
    jsonschema.validate(content["example"], content["schema"])
    BatchRequest.parse(json.dumps(content["example"]).encode())


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"reasoning_effort": "huge"}),
        ("/v1/chat/completions", {"tool_choice": "perhaps"}),
        ("/v1/chat/completions", {"tools": [{"type": "custom", "function": {"name": "a"}}]}),
        ("/v1/chat/completions", {"tools": [{"type": "function", "function": {"name": "two words"}}]}),
        ("/v1/chat/completions",
         {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}),
        ("/v1/responses", {"input": [{"type": "web_search_call"}]}),
        ("/v1/responses", {"input": [{"role": "robot", "content": "hi"}]}),
        ("/v1/responses", {"include": ["everything"]}),
        ("/v1/embeddings", {"input": ""}),
        ("/v1/embeddings", {"input": ["a"] * 2049}),
    ],
)  # fmt: skip
def test_what_a_validator_refuses_the_document_does_not_allow(path: str, fields: dict[str, Any]) -> None:
    content = body_of(path)
    body = content["example"] | fields
    with pytest.raises(ApiError):
        REQUESTS[path].parse(json.dumps(body).encode(), max_choices=1)
    assert not jsonschema.Draft202012Validator(content["schema"]).is_valid(body)


def test_every_endpoint_with_a_body_is_tested_here() -> None:
    assert {path for path, _, operation in operations() if "requestBody" in operation} == {
        *REQUESTS,
        UPLOAD,
        BATCHES,
    }


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        (ChatShape("m").whole(ANSWERED, USAGE), "ChatCompletion"),
        (ChatShape("m").opening(1)[0], "ChatCompletionChunk"),
        (ChatShape("m").finish(0, "stop"), "ChatCompletionChunk"),
        (ChatShape("m").usage(USAGE), "ChatCompletionChunk"),
        (TextShape("m").whole(ANSWERED, USAGE), "TextCompletion"),
        (TextShape("m", no_usage=None).finish(0, "stop"), "TextCompletion"),
        (TextShape("m").usage(USAGE), "TextCompletion"),
    ],
)
def test_what_is_sent_is_what_the_document_says(reply: Reply, name: str) -> None:
    conforms(encode(reply), name)
    with pytest.raises(jsonschema.ValidationError):
        conforms(encode({"id": "m"}), name)


def test_a_field_that_is_always_sent_is_required_and_one_that_may_be_unset_is_not() -> None:
    class Sample(msgspec.Struct):
        always: int
        null_at_first: int | None = None
        sometimes: int | msgspec.UnsetType = msgspec.UNSET

    _, schemas = msgspec.json.schema_components([Sample])
    assert openapi._as_sent(schemas["Sample"])["required"] == ["always", "null_at_first"]


def test_every_error_body_is_what_the_document_says() -> None:
    conforms(encode(errors.DrainingError().to_body()), "Error")
    conforms(encode(errors.MissingParameterError("model").to_body()), "Error")
    conforms(encode(message_error(errors.DrainingError(), "req_1")), "MessageError")
    conforms(encode(message_error(errors.ServerError(), "req_1")), "MessageError")


def test_the_statuses_of_a_generation_are_those_of_the_errors_it_may_come_to() -> None:
    elsewhere = {401, 403, 405}  # of admin's keys, and of the router
    for path in REQUESTS:
        told = {int(status) for status in DOCUMENT["paths"][path]["post"]["responses"] if status.isdecimal()}
        assert told == {200, *(kind.status for kind in all_errors())} - elsewhere
