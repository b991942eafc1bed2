"""JSON schemas that clients send, before they become grammars: without what says nothing and no grammar can express.

Knows JSON Schema's keywords, and what libraries that write schemas put into them. Pure.
"""

from __future__ import annotations

from typing import Any, Final

_ANY_NAME: Final = ("propertyNames", {"type": "string"})
_OF_NAMED_SCHEMAS: Final = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_OF_VALUES: Final = frozenset(("const", "default", "enum", "examples"))


def without_any_name(schema: Any) -> Any:
    """The same schema without every `propertyNames` that any name fits, as zod writes it for each of its records."""
    if isinstance(schema, list):
        return [without_any_name(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_any_name_in(key, value) for key, value in schema.items() if (key, value) != _ANY_NAME}


def _without_any_name_in(keyword: str, value: Any) -> Any:
    if keyword in _OF_VALUES:
        return value
    if keyword in _OF_NAMED_SCHEMAS and isinstance(value, dict):
        return {name: without_any_name(schema) for name, schema in value.items()}
    return without_any_name(value)
