"""Embeddings through the client: base64, which it asks for by itself, floats, batches, token ids and dimensions.

The echo engine's vectors tell how often each byte is in a text.
"""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Server
from tests.support.conformance import Fields, error_of
from tests.support.conformance_cases import ECHO, SHORT_ECHO, SMOLLM2

pytestmark = pytest.mark.timeout(600)  # the first start may have to fetch the model

PATH = "/v1/embeddings"
NUM_DIMENSIONS = 258
INPUTS: dict[str, Any] = {
    "a text": "naïve 🙂",
    "texts": ["one", "two", "naïve 🙂"],
    "the same text twice": ["one", "one"],
    "token ids": [111, 110, 101],
    "lists of token ids": [[111, 110, 101], [116]],
}


def vectors(client: openai.OpenAI, model: str = ECHO, **fields: Any) -> list[list[float]]:
    reply = client.embeddings.create(model=model, **fields)
    assert (reply.object, reply.model) == ("list", model)
    assert [one.index for one in reply.data] == list(range(len(reply.data)))
    assert {one.object for one in reply.data} == {"embedding"}
    assert reply.usage.total_tokens == reply.usage.prompt_tokens > 0
    return [one.embedding for one in reply.data]


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_what_the_client_decodes_is_what_floats_say(client: openai.OpenAI, given: Any) -> None:
    of_base64 = vectors(client, input=given)
    assert of_base64 == vectors(client, input=given, encoding_format="float")
    assert [len(vector) for vector in of_base64] == [NUM_DIMENSIONS] * len(of_base64)
    assert [math.hypot(*vector) for vector in of_base64] == pytest.approx([1] * len(of_base64))


def test_a_batch_has_the_vectors_of_its_texts_in_order(client: openai.OpenAI) -> None:
    texts = [f"text {index}" * (index % 5 + 1) for index in range(60)]
    assert vectors(client, input=texts) == [vectors(client, input=text)[0] for text in texts]


def test_token_ids_are_what_their_text_is(client: openai.OpenAI) -> None:
    [of_text] = vectors(client, input="one")
    assert vectors(client, input=[111, 110, 101]) == [of_text]
    assert vectors(client, input=[[116], [111, 110, 101]])[1] == of_text


def test_dimensions_are_honoured_where_the_registry_allows_it(client: openai.OpenAI) -> None:
    [whole] = vectors(client, SHORT_ECHO, input="one")
    [short] = vectors(client, SHORT_ECHO, input="one", dimensions=112)
    length = math.hypot(*whole[:112])
    assert short == pytest.approx([number / length for number in whole[:112]])
    assert vectors(client, input="one", dimensions=NUM_DIMENSIONS) == vectors(client, input="one")


def test_a_real_models_vectors_are_nearer_for_what_is_alike(client: openai.OpenAI) -> None:
    apple, pear, tax = vectors(client, SMOLLM2, input=["a red apple", "a red pear", "income tax law of 1913"])
    assert math.dist(apple, pear) < math.dist(apple, tax)
    assert vectors(client, SMOLLM2, input="a red apple") == [pytest.approx(apple, abs=1e-4)]


async def test_the_async_client_does_too(server: Server) -> None:
    async with server.async_client as client:
        reply = await client.embeddings.create(model=ECHO, input=["one", "two"])
    assert [len(one.embedding) for one in reply.data] == [NUM_DIMENSIONS] * 2


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_the_strict_client_takes_every_reply(strict_client: openai.OpenAI, given: Any) -> None:
    vectors(strict_client, input=given, encoding_format="float", user="Ann")


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "no/such"}, 404, "model_not_found", None),
        ({"input": ""}, 400, "empty_string", "input"),
        ({"input": ["a", ""]}, 400, "empty_string", "input[1]"),
        ({"input": []}, 400, "empty_array", "input"),
        ({"input": None}, 400, "invalid_type", "input"),
        ({"input": ["a", 1]}, 400, "invalid_type", "input"),
        ({"input": ["a"] * 2049}, 400, "array_above_max_length", "input"),
        ({"input": [300]}, 400, "invalid_value", "input"),
        ({"input": "a" * 5000}, 400, "context_length_exceeded", "input"),
        ({"dimensions": 0}, 400, "integer_below_min_value", "dimensions"),
        ({"dimensions": 12}, 400, "invalid_value", "dimensions"),
        ({"encoding_format": "int8"}, 400, "invalid_value", "encoding_format"),
        ({"stream": True}, 400, "unknown_parameter", "stream"),
    ],
)
def test_a_wrong_field_is_named_with_its_code(
    http: httpx.Client, fields: Fields, status: int, code: str, param: str | None
) -> None:
    response = http.post(PATH, json={"model": ECHO, "input": "a", **fields})
    assert error_of(response) == (status, "invalid_request_error", code, param)
