"""Bodies of /v1/embeddings: what is taken, and OpenAI's code and path for what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.protocol.embeddings import MAX_INPUTS, EmbeddingRequest


def parse(**fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.parse(json.dumps({"model": "m", "input": "hi", **fields}).encode(), max_choices=8)


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_an_input_has_four_forms(given: Any, inputs: tuple[Any, ...]) -> None:
    assert parse(input=given).input == inputs


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "invalid_type", "input"),
        ({"input": []}, "empty_array", "input"),
        ({"input": ""}, "empty_string", "input"),
        ({"input": ["a", ""]}, "empty_string", "input[1]"),
        ({"input": [[1], []]}, "empty_array", "input"),
        ({"input": ["a", 1]}, "invalid_type", "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "array_above_max_length", "input"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"encoding_format": 1}, "invalid_type", "encoding_format"),
        ({"dimensions": 0}, "integer_below_min_value", "dimensions"),
        ({"dimensions": True}, "invalid_type", "dimensions"),
        ({"truncate": True}, "unknown_parameter", "truncate"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_what_only_steers_openais_service_is_taken() -> None:
    assert parse(user=7, encoding_format=None, dimensions=None) == parse()
