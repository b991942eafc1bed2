"""JSON schemas of request bodies as the OpenAPI document needs them. Pure."""

from __future__ import annotations

from typing import Any


def inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it refers to: the document looks for definitions elsewhere."""
    if isinstance(schema, list):
        return [inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: inlined(value, definitions) for key, value in schema.items()}
