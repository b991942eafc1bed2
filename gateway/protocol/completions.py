"""The body of POST /v1/completions. Knows OpenAI's wire format only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gateway.errors import UnsupportedParameterError
from gateway.protocol.fields import GenerationFields
from gateway.protocol.validation import invalid, only_neutral

MAX_LOGPROBS = 5


def _one_text(value: Any) -> Any:
    if isinstance(value, list):
        raise invalid(
            "unsupported_value",
            "Unsupported value for '{param}': this server takes one string, neither lists nor token ids.",
        )
    return value


class CompletionRequest(GenerationFields):
    """Go on with a text."""

    prompt: Annotated[str, BeforeValidator(_one_text)] = Field(description="The text to go on with.")

    best_of: int | None = Field(None, ge=1, description="Only 1, or the value of `n`.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Tell how likely each generated token was, and so many likeliest others.",
    )
    echo: only_neutral(False) = None  # type: ignore[valid-type]
    suffix: only_neutral() = None  # type: ignore[valid-type]

    def check_together(self) -> None:
        super().check_together()
        if self.best_of is not None and self.best_of not in (1, self.num_choices):
            raise UnsupportedParameterError(
                f"Unsupported parameter: 'best_of' of {self.best_of} with 'n' of {self.num_choices} is not supported "
                "by this server. Leave it out, or set it to 1 or to the value of 'n'.",
                param="best_of",
            )
