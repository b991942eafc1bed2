"""The body of POST /v1/embeddings and its reply. Knows OpenAI's wire format only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field

from gateway.errors import InvalidRequestError
from gateway.protocol.completions import OnePrompt, prompts_schema, several_prompts
from gateway.protocol.fields import INT32_MAX, Body
from gateway.protocol.validation import invalid

MAX_INPUTS = 2048
"""OpenAI's own limit."""


def _format(value: str | None) -> str | None:
    if value in (None, "float", "base64"):
        return value
    raise invalid("invalid_value", "Invalid value for '{param}'. Supported values are: 'float' and 'base64'.")


class EmbeddingRequest(Body):
    """Vectors of texts."""

    input: Annotated[tuple[OnePrompt, ...], BeforeValidator(several_prompts, json_schema_input_type=Any)] = Field(
        description=f"Texts, or token ids: one, or up to {MAX_INPUTS}. Each gets one vector.",
        json_schema_extra=prompts_schema(min_chars=1, max_prompts=MAX_INPUTS),
    )
    encoding_format: Annotated[str | None, AfterValidator(_format)] = Field(
        None,
        description="`float`, the default: an array of numbers. `base64`: their bytes in float32, little-endian.",
        json_schema_extra={"enum": ["float", "base64", None]},
    )
    dimensions: int | None = Field(
        None, ge=1, le=INT32_MAX, description="Numbers of each vector, where the model can make it shorter."
    )

    without_effect: ClassVar[dict[str, str]] = {"user": "nothing of an embedding is kept for the next"}

    def check_together(self) -> None:
        if len(self.input) > MAX_INPUTS:
            raise InvalidRequestError(
                f"Invalid 'input': array too long. Expected at most {MAX_INPUTS} inputs, but got {len(self.input)} "
                "instead.",
                param="input",
                code="array_above_max_length",
            )
        for index, one in enumerate(self.input):
            if one == "":
                place = "input" if len(self.input) == 1 else f"input[{index}]"
                raise InvalidRequestError(
                    f"Invalid '{place}': empty string. Expected at least one character.",
                    param=place,
                    code="empty_string",
                )


class EmbeddingObject(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Sequence[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[EmbeddingObject, ...]
    model: str
    usage: EmbeddingUsage
