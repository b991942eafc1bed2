"""The bodies of POST /v1/tokenize and /v1/detokenize, and their replies: vLLM's, field by field."""

from __future__ import annotations

from functools import cached_property

import msgspec
from pydantic import Field

from gateway.errors import InvalidRequestError, MissingParameterError
from gateway.protocol.chat import Message, TemplateKwargs, Tools, check_can_go_on, conversation_of
from gateway.protocol.fields import Body, TokenId
from gateway.protocol.tools import chat_tool_use
from gateway.protocol.validation import only_neutral
from gateway.tool_use import ToolUse
from model_registry.contract import ChatMessage

_OF_MESSAGES = ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs")


class TokenizeRequest(Body):
    """What a text, or a conversation, is to the model."""

    prompt: str | None = Field(None, description="A text, as /v1/completions takes it. Either this or `messages`.")
    messages: list[Message] | None = Field(
        None, min_length=1, description="A conversation, as /v1/chat/completions takes it."
    )
    return_token_strs: bool | None = Field(None, description="Tell also how the vocabulary writes each token.")
    add_special_tokens: bool | None = Field(
        None,
        description="Whether `prompt` begins as the model's texts do, with a BOS token; the default.",
    )
    add_generation_prompt: bool | None = Field(
        None, description="Only with `messages`: whether they end with what opens the answer. The default."
    )
    continue_final_message: bool | None = Field(
        None,
        description="Only with `messages`: leave the last one, an assistant's, open, instead of opening an answer.",
    )
    use_prompt_format: bool | None = Field(None, description="Whether the registry's prompt_format is applied.")

    tools: Tools = Field(None, description="Only with `messages`: functions that the model may call.")
    chat_template_kwargs: TemplateKwargs = Field(
        None, description="Only with `messages`: variables of the model's chat template."
    )

    chat_template: only_neutral() = None  # type: ignore[valid-type]
    mm_processor_kwargs: only_neutral({}) = None  # type: ignore[valid-type]

    def check_together(self) -> None:
        if self.prompt is None and self.messages is None:
            raise MissingParameterError("prompt")
        if self.prompt is not None and self.messages is not None:
            raise _contradiction("messages", "'prompt' is given too. Send one of them")
        for name in _OF_MESSAGES:
            if self.messages is None and getattr(self, name) is not None:
                raise _contradiction(name, "it is only allowed with 'messages'")
        if self.add_special_tokens and self.messages is not None:
            raise _contradiction("add_special_tokens", "the special tokens of 'messages' are those of their template")
        if self.add_special_tokens is False and self.use_prompt_format and self.messages is None:
            raise _contradiction("add_special_tokens", "it contradicts 'use_prompt_format'. Give one of them")
        if self.continue_final_message and self.add_generation_prompt:
            raise _contradiction("continue_final_message", "it contradicts 'add_generation_prompt'. Give one of them")
        if self.continue_final_message and self.messages:
            check_can_go_on(self.messages[-1])
        _ = self.conversation, self.tool_use

    @cached_property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """Raises `InvalidRequestError` where a message does not belong."""
        return conversation_of(self.messages or ())

    @cached_property
    def tool_use(self) -> ToolUse:
        """Raises `InvalidRequestError` where the tools do not go together."""
        return chat_tool_use(self.tools or (), None, parallel=True)

    @property
    def has_opening(self) -> bool:
        return self.add_special_tokens is not False

    @property
    def opens_answer(self) -> bool:
        return self.add_generation_prompt is not False and not self.continue_final_message


class DetokenizeRequest(Body):
    """What token ids are as text."""

    tokens: list[TokenId] = Field(description="Token ids; special ones become their names.")


class TokenizeReply(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int | None
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None


class DetokenizeReply(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str


def _contradiction(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")
