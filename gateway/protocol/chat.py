"""The body of POST /v1/chat/completions. Knows OpenAI's wire format only."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from gateway.errors import InvalidRequestError
from gateway.protocol.fields import INT32_MAX, GenerationFields
from gateway.protocol.structured import ResponseFormat
from gateway.protocol.validation import LIST, TEXT, RequestModel, invalid, only_neutral, text_or_list

ROLES = ("system", "developer", "user", "assistant")
ROLES_LATER = ("tool", "function")
PARTS_LATER = ("image_url", "input_audio", "file", "refusal", "video_url", "audio_url")
MAX_TOP_LOGPROBS = 20


def _known_role(role: str) -> str:
    if role in ROLES:
        return role
    supported = ", ".join(f"'{one}'" for one in ROLES)
    if role in ROLES_LATER:
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{role}' messages are not supported.")
    raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {supported}.")


def _text_part(kind: str) -> str:
    if kind == "text":
        return kind
    if kind in PARTS_LATER:
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{kind}' parts are not supported.")
    raise invalid("invalid_value", "Invalid value for '{param}'. Supported values are: 'text'.")


class TextPart(RequestModel):
    type: Annotated[str, AfterValidator(_text_part)] = Field(
        description="What it is.", json_schema_extra={"enum": ["text"]}
    )
    text: str = Field(description="What it says.")
    prompt_cache_breakpoint: Any = Field(
        None, description="Accepted without effect: prefixes are cached as long as there is room."
    )


Content = Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[TextPart], Tag(LIST)], Discriminator(text_or_list)]


class Message(RequestModel):
    """One message. What OpenAI's replies carry beside text is taken back when it is empty."""

    role: Annotated[str, AfterValidator(_known_role)] = Field(
        description="Who said it; a developer is a system.", json_schema_extra={"enum": list(ROLES)}
    )
    content: Content = Field(description="A text, or parts of one, which become lines.")

    annotations: only_neutral([]) = None  # type: ignore[valid-type]
    audio: only_neutral() = None  # type: ignore[valid-type]
    function_call: only_neutral() = None  # type: ignore[valid-type]
    name: only_neutral() = None  # type: ignore[valid-type]
    refusal: only_neutral() = None  # type: ignore[valid-type]
    tool_calls: only_neutral([]) = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        """All its text; parts are lines, as vLLM joins them."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationFields):
    """Answer a conversation."""

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description="Today's name of `max_tokens`.")
    parallel_tool_calls: bool | None = Field(None, description="Accepted without effect, since no tools are taken.")
    logprobs: bool | None = Field(None, description="Tell how likely each generated token was.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="Likeliest tokens told beside it, with `logprobs` only."
    )

    response_format: ResponseFormat | None = Field(
        None, description="Any text, any JSON object, or JSON that fits a schema."
    )

    audio: only_neutral() = None  # type: ignore[valid-type]
    chat_template_kwargs: only_neutral({}) = None  # type: ignore[valid-type]
    function_call: only_neutral("none", "auto") = None  # type: ignore[valid-type]
    functions: only_neutral([]) = None  # type: ignore[valid-type]
    modalities: only_neutral(["text"]) = None  # type: ignore[valid-type]
    prediction: only_neutral() = None  # type: ignore[valid-type]
    reasoning_effort: only_neutral("none") = None  # type: ignore[valid-type]
    tool_choice: only_neutral("none", "auto") = None  # type: ignore[valid-type]
    tools: only_neutral([]) = None  # type: ignore[valid-type]
    verbosity: only_neutral() = None  # type: ignore[valid-type]
    web_search_options: only_neutral() = None  # type: ignore[valid-type]

    def check_together(self) -> None:
        super().check_together()
        if self.response_format is not None:
            self.response_format.check_together()
            if self.structured_outputs is not None and self.response_format.type != "text":
                raise InvalidRequestError(
                    "Invalid 'structured_outputs': 'response_format' says what the text must be, too. Give one.",
                    param="structured_outputs",
                    code="invalid_value",
                )
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequestError(
                f"Invalid 'max_completion_tokens': {self.max_completion_tokens} differs from 'max_tokens' "
                f"({self.max_tokens}), its older name. Give one of them.",
                param="max_completion_tokens",
                code="invalid_value",
            )
        if self.top_logprobs and not self.logprobs:  # in OpenAI's words, which give it no code
            raise InvalidRequestError(
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
            )

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
