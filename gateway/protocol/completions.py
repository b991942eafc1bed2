"""The body of POST /v1/completions. Knows OpenAI's wire format only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.config import JsonDict

from gateway.errors import InvalidRequestError
from gateway.protocol.fields import INT32_MAX, GenerationFields, within_max_choices
from gateway.protocol.validation import invalid, type_name

MAX_LOGPROBS = 5

OnePrompt = str | tuple[int, ...]
"""A text, or token ids."""
_FORMS = "a string, an array of strings, an array of token ids, or an array of such arrays"


def several_prompts(value: Any) -> tuple[OnePrompt, ...]:
    """OpenAI's four forms of `prompt`, and of an embedding's `input`, as one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise _wrong_type("", value)
    if not value:
        raise invalid("empty_array", "Invalid '{param}': empty array. Expected at least one prompt.")
    if _is_int(value[0]):
        return (_token_ids(value, ""),)
    return tuple(_one_of_several(one, value, index) for index, one in enumerate(value))


def _one_of_several(one: Any, prompts: list[Any], index: int) -> OnePrompt:
    if isinstance(one, str) and isinstance(prompts[0], str):
        return one
    if isinstance(one, list) and isinstance(prompts[0], list):
        return _token_ids(one, f"[{index}]")
    raise _wrong_type(f"[{index}]", one)


def _token_ids(value: list[Any], path: str) -> tuple[int, ...]:
    if not value:
        raise invalid("empty_array", f"Invalid '{{param}}{path}': empty array. Expected at least one token id.")
    for index, token_id in enumerate(value):
        if not _is_int(token_id):
            raise _wrong_type(f"{path}[{index}]", token_id)
        if not 0 <= token_id <= INT32_MAX:
            raise invalid("invalid_value", f"Invalid '{{param}}{path}[{index}]': {token_id} is no token id.")
    return tuple(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_type(path: str, value: Any) -> Exception:
    return invalid(
        "invalid_type", f"Invalid type for '{{param}}{path}': expected {_FORMS}, but got {type_name(value)} instead."
    )


def _no_suffix(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid 'suffix': it cannot be taken with {reason}", param="suffix", code="invalid_value"
    )


_TOKEN_IDS_SCHEMA: JsonDict = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": INT32_MAX},
    "minItems": 1,
}


def prompts_schema(min_chars: int, max_prompts: int | None = None) -> JsonDict:
    """Of what `several_prompts` takes, where there are further limits."""
    text: JsonDict = {"type": "string", "minLength": min_chars}
    several: JsonDict = {"type": "array", "minItems": 1}
    if max_prompts is not None:
        several["maxItems"] = max_prompts
    return {
        "anyOf": [
            text,
            {**several, "items": text},
            _TOKEN_IDS_SCHEMA,
            {**several, "items": _TOKEN_IDS_SCHEMA},
        ]
    }


class CompletionRequest(GenerationFields):
    """Go on with a text, or with several."""

    prompt: Annotated[tuple[OnePrompt, ...], BeforeValidator(several_prompts, json_schema_input_type=Any)] = Field(
        description="What to go on with: texts, or token ids. Each prompt gets `n` choices, prompt by prompt.",
        json_schema_extra=prompts_schema(min_chars=0),
    )

    best_of: Annotated[int | None, Field(ge=1), AfterValidator(within_max_choices)] = Field(
        None, description="Make so many of each prompt and show the `n` whose tokens are likeliest on average."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Tell how likely each generated token was, and so many likeliest others.",
    )
    echo: bool | None = Field(None, description="Begin each choice with its prompt; with `logprobs`, with its own too.")
    max_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Tokens generated at most; 0 only with `echo`."
    )
    suffix: str | None = Field(
        None, description="What comes after the text that is generated, for models trained to fill in the middle."
    )

    def check_together(self) -> None:
        super().check_together()
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError(
                "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead; without "
                "'echo' there would be nothing to answer.",
                param="max_tokens",
                code="integer_below_min_value",
            )
        if self.suffix:
            self._check_suffix()
        if self.echo and self.use_prompt_format:
            raise InvalidRequestError(
                "Invalid 'echo': with 'use_prompt_format' the model reads more than the prompt. Give one of them.",
                param="echo",
                code="invalid_value",
            )
        if self.best_of is not None and self.best_of < self.num_choices:
            raise InvalidRequestError(
                f"Invalid 'best_of': {self.best_of} is less than the {self.num_choices} choices of 'n', which are "
                "taken from them.",
                param="best_of",
                code="integer_below_min_value",
            )
        if self.stream and self.num_sampled > self.num_choices:
            raise InvalidRequestError(
                f"Invalid 'best_of': {self.best_of} with 'n' of {self.num_choices} cannot be streamed, since the best "
                "are known at the end only.",
                param="best_of",
                code="invalid_value",
            )

    def _check_suffix(self) -> None:
        if not all(isinstance(prompt, str) for prompt in self.prompt):
            raise _no_suffix("a prompt of token ids. Send its text.")
        for name in ("echo", "use_prompt_format"):
            if getattr(self, name):
                raise _no_suffix(f"'{name}'. Give one of them.")

    @property
    def num_sampled(self) -> int:
        return self.num_choices if self.best_of is None else self.best_of
