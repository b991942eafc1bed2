"""The request fields that endpoints share: `SamplingFields` all of them, `GenerationFields` those that tell choices.

Every field of OpenAI's API and of vLLM's extras is in one of three places: declared with a range (honoured), declared
with `only_neutral` (refused by name where it would change something), or in `NO_EFFECT`. All others are unknown.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo

from gateway.errors import InvalidRequestError, shortened
from gateway.protocol.json_schema import inlined
from gateway.protocol.strict_json import parse_json
from gateway.protocol.structured import StructuredOutputs
from gateway.protocol.validation import LIST, MAX_CHOICES, TEXT, RequestModel, invalid, text_or_list

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_STOP_TOKEN_IDS = 64
MAX_BIASED_TOKENS = 1024
MAX_BIAS = 100
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

NO_EFFECT: dict[str, str] = {
    "metadata": "labels of OpenAI's dashboard",
    "moderation": "OpenAI's own filter",
    "prompt_cache_options": "prefixes are cached as long as there is room",
    "prompt_cache_retention": "prefixes are cached as long as there is room",
    "safety_identifier": "whom OpenAI blames",
    "service_tier": "OpenAI's price list",
    "store": "nothing is ever stored",
}
"""Fields that only steer OpenAI's own service: accepted, and without effect here."""


def _of_token_ids(biases: dict[str, float] | None) -> dict[str, float] | None:
    for key in biases or ():
        if not (key.isascii() and key.isdecimal() and str(int(key)) == key):
            raise invalid(
                "invalid_value",
                f"Invalid key in '{{param}}': '{shortened(key)}'. Keys are token ids, as non-negative integers.",
            )
    return biases


def within_max_choices(n: int | None, info: ValidationInfo) -> int | None:
    limit = (info.context or {}).get(MAX_CHOICES)
    if n is not None and limit is not None and n > limit:
        raise invalid(
            "integer_above_max_value",
            f"Invalid '{{param}}': integer above maximum value. Expected a value <= {limit}, but got {n} instead.",
        )
    return n


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Stop = Annotated[
    Annotated[StopString | None, Tag(TEXT)]
    | Annotated[Annotated[list[StopString], Field(max_length=MAX_STOPS)], Tag(LIST)],
    Discriminator(text_or_list),
]


TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
LogitBias = Annotated[
    Annotated[
        dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
        Field(max_length=MAX_BIASED_TOKENS, json_schema_extra={"propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"}}),
    ]
    | None,
    AfterValidator(_of_token_ids),
]


class StreamOptions(RequestModel):
    include_usage: bool | None = Field(None, description="Send the usage in a last chunk.")
    include_obfuscation: bool | None = Field(None, description="Accepted without effect: chunks are never padded.")


class Body(RequestModel):
    """A whole request body, about a model."""

    model: str = Field(description="Id of a deployed model.")

    without_effect: ClassVar[dict[str, str]] = {}
    """Further fields that are accepted, and why they change nothing."""

    @classmethod
    def parse(cls, body: bytes, *, max_choices: int) -> Self:
        data = parse_json(body)
        fields = {name: value for name, value in data.items() if name not in cls.without_effect}
        request = cls.check(fields, max_choices=max_choices)
        request.check_together()
        return request

    def check_together(self) -> None:
        """Rules between fields. Raises `InvalidRequestError`."""

    @classmethod
    def body_schema(cls) -> dict[str, Any]:
        """JSON schema of the body, for the OpenAPI document."""
        whole = cls.model_json_schema()
        schema: dict[str, Any] = inlined(whole, whole.pop("$defs", {}))
        for name, reason in cls.without_effect.items():
            schema["properties"][name] = {"description": f"Accepted without effect: {reason}."}
        return schema


class AnsweredBody(Body):
    """One that is answered with generated text, whole or as a stream."""

    stream: bool | None = Field(None, description="Answer in server-sent events.")

    @property
    def session(self) -> str | None:
        """What requests that belong together have in common."""
        return None


class SamplingFields(AnsweredBody):
    """How to generate, whatever the prompt's form and the reply's."""

    temperature: float | None = Field(None, ge=0, le=2, description="Spread of sampling; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1, description="Sample among the likeliest tokens of this probability.")
    top_k: int | None = Field(
        None, ge=-1, le=INT32_MAX, description="Sample among this many likeliest tokens; 0 or -1 means all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Sample among tokens at least this share as likely as the likeliest."
    )
    logit_bias: LogitBias = Field(None, description="Added to the logits of tokens, by their ids; -100 bans one.")
    min_tokens: int | None = Field(None, ge=0, le=INT32_MAX, description="Tokens generated before a stop counts.")
    stop: Stop = Field(None, description=f"Up to {MAX_STOPS} strings that end the generation; never shown.")
    stop_token_ids: list[TokenId] | None = Field(
        None, max_length=MAX_STOP_TOKEN_IDS, description="Tokens that end the generation; never shown."
    )
    seed: int | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX, description="Makes sampling repeatable.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens that were generated before.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, for each time they were.")
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, description="Above 1, tokens of prompt and answer become less likely."
    )
    ignore_eos: bool | None = Field(None, description="Go on after an end of sequence.")
    use_prompt_format: bool | None = Field(None, description="Whether the registry's prompt_format is applied.")
    prompt_cache_key: str | None = Field(
        None, description="Requests with the same key go to the same replica where load allows."
    )
    user: str | None = Field(None, description="The same, where no `prompt_cache_key` is given.")

    without_effect: ClassVar[dict[str, str]] = NO_EFFECT

    @property
    def num_sampled(self) -> int:
        """Sequences made of each prompt."""
        return 1

    @property
    def token_biases(self) -> dict[int, float]:
        return {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()}

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def session(self) -> str | None:
        return self.prompt_cache_key or self.user


class GenerationFields(SamplingFields):
    """The same, and how many choices of it are told, and how."""

    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description="Tokens generated at most.")
    n: Annotated[int | None, Field(ge=1), AfterValidator(within_max_choices)] = Field(
        None, description="Choices to generate."
    )
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")

    timing: bool | None = Field(None, description="Tell where the time went: waiting, first token, generation.")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="What the generated text must be: `json`, `regex`, `choice`, `grammar` or `json_object`."
    )

    def check_together(self) -> None:
        super().check_together()
        check_stream_options(self.stream_options, self.stream)
        if self.structured_outputs is not None:
            self.structured_outputs.check_together()

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def num_sampled(self) -> int:
        """Sequences made of each prompt, of which `num_choices` are shown."""
        return self.num_choices

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def check_stream_options(options: RequestModel | None, stream: bool | None) -> None:
    """Raises `InvalidRequestError` where there is no stream that they could be about."""
    if options is not None and not stream:
        raise InvalidRequestError(
            "Invalid 'stream_options': it is only allowed when 'stream' is true.",
            param="stream_options",
            code="invalid_value",
        )
