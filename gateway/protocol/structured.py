"""What a request may say about the form of the generated text: OpenAI's `response_format`, vLLM's `structured_outputs`.

Knows the wire formats only; `gateway.constraints` says what they come to.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from gateway.errors import BadJsonError, InvalidRequestError, MissingParameterError
from gateway.protocol.client_schemas import without_any_name
from gateway.protocol.strict_json import parse_json
from gateway.protocol.validation import RequestModel, invalid, only_neutral, type_name

MAX_SOURCE_CHARS: Final = 128 * 1024
"""Of a schema, a regular expression or a grammar; what it takes to compile one is limited where that is done."""
MAX_TEXTS: Final = 1000
FORMATS: Final = ("text", "json_object", "json_schema")


def _known_format(kind: str) -> str:
    if kind not in FORMATS:
        supported = ", ".join(f"'{one}'" for one in FORMATS)
        raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {supported}.")
    return kind


def schema_text(value: Any) -> str | None:
    """A JSON schema as JSON text, whichever way it was given. Raises what pydantic makes an error of."""
    if value is None:
        return None
    if not isinstance(value, dict | str):
        raise invalid("invalid_type", f"Invalid type for '{{param}}': expected an object, but got {type_name(value)}.")
    text = value if isinstance(value, str) else json.dumps(without_any_name(value), ensure_ascii=False)
    if isinstance(value, str):
        try:
            parse_json(value.encode())
        except (BadJsonError, UnicodeEncodeError) as error:
            raise invalid("invalid_value", f"Invalid '{{param}}': no schema can be read from it: {error}") from None
    if len(text) > MAX_SOURCE_CHARS:
        raise invalid(
            "string_above_max_length",
            f"Invalid '{{param}}': the schema has {len(text)} characters of JSON, more than {MAX_SOURCE_CHARS}.",
        )
    return text


def _not_too_long(texts: list[str] | None) -> list[str] | None:
    if texts is not None and (num_chars := sum(map(len, texts))) > MAX_SOURCE_CHARS:
        raise invalid(
            "string_above_max_length",
            f"Invalid '{{param}}': the texts have {num_chars} characters, more than {MAX_SOURCE_CHARS}.",
        )
    return texts


SchemaText = Annotated[str | None, BeforeValidator(schema_text), WithJsonSchema({"type": ["object", "null"]})]
Source = Annotated[str, Field(min_length=1, max_length=MAX_SOURCE_CHARS)]


class NamedSchema(RequestModel):
    name: str = Field(
        pattern=r"^[a-zA-Z0-9_-]+$", max_length=64, description="Without effect: the model is not told of the schema."
    )
    description: str | None = Field(None, description="Without effect: the model is not told of the schema.")
    schema_: SchemaText = Field(None, alias="schema", description="What the answer must fit; without it, any JSON.")
    strict: bool | None = Field(None, description="Without effect: an answer always fits the schema.")


class ResponseFormat(RequestModel):
    """OpenAI's."""

    type: Annotated[str, AfterValidator(_known_format), WithJsonSchema({"type": "string", "enum": list(FORMATS)})] = (
        Field(description="What the answer is.")
    )
    json_schema: NamedSchema | None = Field(None, description="Only with the type `json_schema`, which needs it.")

    def check_together(self) -> None:
        if self.type == "json_schema" and self.json_schema is None:
            raise MissingParameterError("response_format.json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise InvalidRequestError(
                f"Invalid 'response_format.json_schema': the type is '{self.type}'. Set it to 'json_schema'.",
                param="response_format.json_schema",
                code="invalid_value",
            )


class StructuredOutputs(RequestModel):
    """vLLM's; exactly one way to say what the text must be."""

    json_: SchemaText = Field(None, alias="json", description="A JSON schema, as an object or as its text.")
    regex: Source | None = Field(None, description="A regular expression for the whole text.")
    choice: Annotated[list[Annotated[str, Field(min_length=1)]] | None, AfterValidator(_not_too_long)] = Field(
        None, min_length=1, max_length=MAX_TEXTS, description="Texts, one of which is generated."
    )
    grammar: Source | None = Field(
        None, description="A context-free grammar, as llguidance's variant of Lark or as llama.cpp's GBNF."
    )
    json_object: bool | None = Field(None, description="Any JSON object.")

    disable_any_whitespace: only_neutral(False) = None  # type: ignore[valid-type]
    disable_additional_properties: only_neutral(False) = None  # type: ignore[valid-type]
    disable_fallback: only_neutral(False, True) = None  # type: ignore[valid-type]
    structural_tag: only_neutral() = None  # type: ignore[valid-type]
    whitespace_pattern: only_neutral() = None  # type: ignore[valid-type]

    def check_together(self) -> None:
        ways = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "json_object": self.json_object or None,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            said = f"but got {' and '.join(given)}" if given else "but got none"
            raise InvalidRequestError(
                f"Invalid 'structured_outputs': expected exactly one of {', '.join(ways)}, {said}.",
                param="structured_outputs",
                code="invalid_value",
            )
