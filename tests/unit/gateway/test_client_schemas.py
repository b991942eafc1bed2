"""Schemas as clients' libraries write them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.client_schemas import without_any_name

RECORD: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"type": "string"},
    "additionalProperties": {"type": "number"},
}
PLAIN: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "number"}}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (RECORD, PLAIN),
        ({"properties": {"a": RECORD}}, {"properties": {"a": PLAIN}}),
        ({"$defs": {"a": RECORD}, "items": RECORD}, {"$defs": {"a": PLAIN}, "items": PLAIN}),
        ({"anyOf": [RECORD, {"additionalProperties": RECORD}]}, {"anyOf": [PLAIN, {"additionalProperties": PLAIN}]}),
    ],
)
def test_names_that_may_be_any_are_not_spoken_of(written: Any, meant: Any) -> None:
    assert without_any_name(written) == meant


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": {"type": "string", "pattern": "a"}},
        {"properties": {"propertyNames": {"type": "string"}}},
        {"const": RECORD},
        {"enum": [RECORD], "default": RECORD},
        {"properties": 7, "type": ["object", "null"]},
        True,
    ],
)
def test_whatever_else_is_said_stays(schema: Any) -> None:
    assert without_any_name(schema) == schema
