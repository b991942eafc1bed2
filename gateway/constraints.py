"""From what a request says about the form of its text to the contract's `Constraint`. Pure."""

from __future__ import annotations

import json
from typing import Final

from gateway.protocol.structured import ResponseFormat, StructuredOutputs
from model_registry.contract import Constraint, ConstraintKind

ANY_OBJECT: Final = '{"type": "object"}'
_ANY_JSON: Final = "{}"


def constraint_of(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Constraint | None:
    """None for any text. The request gives at most one of the two a meaning."""
    if structured_outputs is not None:
        return _structured(structured_outputs)
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=ANY_OBJECT, param="response_format")
    return Constraint(
        kind=ConstraintKind.JSON_SCHEMA,
        source=response_format.json_schema.schema_ or _ANY_JSON,
        param="response_format.json_schema.schema",
    )


def _structured(wanted: StructuredOutputs) -> Constraint:
    if wanted.regex is not None:
        return Constraint(kind=ConstraintKind.REGEX, source=wanted.regex, param="structured_outputs.regex")
    if wanted.choice is not None:
        return Constraint(
            kind=ConstraintKind.GRAMMAR, source=grammar_of_texts(wanted.choice), param="structured_outputs.choice"
        )
    if wanted.grammar is not None:
        return Constraint(kind=ConstraintKind.GRAMMAR, source=wanted.grammar, param="structured_outputs.grammar")
    return Constraint(
        kind=ConstraintKind.JSON_SCHEMA, source=wanted.json_ or ANY_OBJECT, param="structured_outputs.json"
    )


def grammar_of_texts(texts: list[str]) -> str:
    """A Lark grammar of exactly these."""
    return "start: " + " | ".join(dict.fromkeys(map(_literal, texts)))


def _literal(text: str) -> str:
    """A string of Lark. Its lexer takes no raw DEL, which JSON does not escape."""
    return json.dumps(text).replace("\x7f", "\\u007f")
