"""What POST /v1/messages and its sibling send: the message, its blocks, the events of its stream, and errors.

Plain msgspec structs, in Anthropic's order, encoded by `responses.encode`. Built by `block_writer`, `message_reply`,
`error_bodies` and `routes.messages`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, tag="text", tag_field="type"):
    citations: None = None
    text: str = ""


class ThinkingBlock(msgspec.Struct, frozen=True, kw_only=True, tag="thinking", tag_field="type"):
    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True, tag="tool_use", tag_field="type"):
    id: str
    name: str
    input: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object"})]
    """Exactly as the model wrote it."""


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt's tokens are the sum of the first three."""

    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0


class Message(msgspec.Struct, frozen=True, kw_only=True, tag="message", tag_field="type"):
    """An answer at one moment of its life; it has a `stop_reason` when it is whole."""

    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: tuple[ContentBlock, ...] = ()
    stop_details: None = None
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage = MessageUsage()


class MessageTokensCount(msgspec.Struct, frozen=True):
    input_tokens: int


# Events


class BlockTextDelta(msgspec.Struct, frozen=True, tag="text_delta", tag_field="type"):
    text: str


class BlockThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta", tag_field="type"):
    thinking: str


class BlockSignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta", tag_field="type"):
    signature: str


class BlockInputDelta(msgspec.Struct, frozen=True, tag="input_json_delta", tag_field="type"):
    partial_json: str


BlockDelta = BlockTextDelta | BlockThinkingDelta | BlockSignatureDelta | BlockInputDelta


class MessageEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    @property
    def name(self) -> str:
        return str(self.__struct_config__.tag)


class MessageStart(MessageEvent, frozen=True, kw_only=True, tag="message_start"):
    message: Message


class ContentBlockStart(MessageEvent, frozen=True, kw_only=True, tag="content_block_start"):
    index: int
    content_block: ContentBlock


class ContentBlockDelta(MessageEvent, frozen=True, kw_only=True, tag="content_block_delta"):
    index: int
    delta: BlockDelta


class ContentBlockStop(MessageEvent, frozen=True, kw_only=True, tag="content_block_stop"):
    index: int


class MessageEnd(msgspec.Struct, frozen=True, kw_only=True):
    stop_details: None = None
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(MessageEvent, frozen=True, kw_only=True, tag="message_delta"):
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(MessageEvent, frozen=True, kw_only=True, tag="message_stop"):
    """Nothing comes after it."""


class MessageErrorDetails(msgspec.Struct, frozen=True):
    error_code: str


class MessageErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    message: str
    details: MessageErrorDetails | UnsetType = UNSET
    """Where the error has a code: the same one that OpenAI's clients get."""


class MessageError(MessageEvent, frozen=True, kw_only=True, tag="error"):
    """The body of an error, and the last event of a stream that failed."""

    error: MessageErrorObject
    request_id: str


EVENTS: tuple[type[Any], ...] = (
    MessageStart,
    ContentBlockStart,
    ContentBlockDelta,
    ContentBlockStop,
    MessageDelta,
    MessageStop,
)
"""All that a stream holds that does not fail."""
