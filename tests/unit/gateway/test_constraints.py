"""What a request says about the form of its text, as the contract says it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.constraints import constraint_of
from gateway.protocol.chat import ChatCompletionRequest
from model_registry.contract import Constraint, ConstraintKind


def constraint(**fields: Any) -> Constraint | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    request = ChatCompletionRequest.parse(json.dumps(body).encode(), max_choices=8)
    return constraint_of(request.response_format, request.structured_outputs)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
def test_any_text_is_no_constraint(fields: dict[str, Any]) -> None:
    assert constraint(**fields) is None


SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        (
            {"response_format": {"type": "json_object"}},
            ConstraintKind.JSON_SCHEMA,
            '{"type": "object"}',
            "response_format",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SCHEMA},
                }
            },
            ConstraintKind.JSON_SCHEMA,
            '{"type": "object", "properties": {"größe": {"type": "integer"}}}',
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            ConstraintKind.JSON_SCHEMA,
            "{}",
            "response_format.json_schema.schema",
        ),
        (
            {"structured_outputs": {"json": SCHEMA}},
            ConstraintKind.JSON_SCHEMA,
            '{"type": "object", "properties": {"größe": {"type": "integer"}}}',
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json": SCHEMA | {"propertyNames": {"type": "string"}}}},
            ConstraintKind.JSON_SCHEMA,
            '{"type": "object", "properties": {"größe": {"type": "integer"}}}',
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json": "{}"}, "response_format": {"type": "text"}},
            ConstraintKind.JSON_SCHEMA,
            "{}",
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json_object": True}},
            ConstraintKind.JSON_SCHEMA,
            '{"type": "object"}',
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"regex": "a+"}}, ConstraintKind.REGEX, "a+", "structured_outputs.regex"),
        (
            {"structured_outputs": {"choice": ['a"b', "\x7f", 'a"b']}},
            ConstraintKind.GRAMMAR,
            'start: "a\\"b" | "\\u007f"',
            "structured_outputs.choice",
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            ConstraintKind.GRAMMAR,
            'start: "a"',
            "structured_outputs.grammar",
        ),
    ],
)
def test_each_way_to_say_it_has_its_kind_and_names_its_field(
    fields: dict[str, Any], kind: ConstraintKind, source: str, param: str
) -> None:
    assert constraint(**fields) == Constraint(kind=kind, source=source, param=param)
