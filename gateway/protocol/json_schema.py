"""JSON schemas of request bodies as the OpenAPI document needs them. Pure."""

from __future__ import annotations

from typing import Any


def inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with every reference replaced by what it refers to: the document looks for definitions elsewhere.

    What is said beside a reference, such as a description, is of this one place, and counts more."""
    if isinstance(schema, list):
        return [inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    here = {key: inlined(value, definitions) for key, value in schema.items() if key != "$ref"}
    if "$ref" not in schema:
        return here
    return inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions) | here
