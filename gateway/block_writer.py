"""From the parts of an answer to the blocks of a message, and to the events that tell of them.

Blocks stand in the order in which the model wrote them, and each is complete before the next begins. Pure; used by
`message_reply`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import msgspec

from gateway.answer import AnswerDelta, ToolCallDelta
from gateway.protocol.message_objects import (
    BlockDelta,
    BlockInputDelta,
    BlockSignatureDelta,
    BlockTextDelta,
    BlockThinkingDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    MessageEvent,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)

SIGNATURE: Final = "unsigned"
"""Nothing is signed or checked, but some clients do not send back thinking that has no signature."""
NO_INPUT: Final = msgspec.Raw(b"{}")


class BlockWriter:
    """The content of one message while it comes."""

    def __init__(self) -> None:
        self._done: list[ContentBlock] = []
        self._open: ContentBlock | None = None
        self._pieces: list[str] = []

    @property
    def blocks(self) -> tuple[ContentBlock, ...]:
        """Those that are complete."""
        return tuple(self._done)

    def add(self, delta: AnswerDelta) -> Iterator[MessageEvent]:
        if delta.reasoning:
            yield from self._begin(ThinkingBlock())
            yield self._grow(delta.reasoning, BlockThinkingDelta(delta.reasoning))
        if delta.content:
            yield from self._begin(TextBlock())
            yield self._grow(delta.content, BlockTextDelta(delta.content))
        for call in delta.tool_calls:
            yield from self._call(call)

    def finish(self) -> Iterator[MessageEvent]:
        """The end of the last block."""
        if self._open is None:
            return
        block, text = self._open, "".join(self._pieces)
        if isinstance(block, ThinkingBlock):
            yield ContentBlockDelta(index=len(self._done), delta=BlockSignatureDelta(SIGNATURE))
        yield ContentBlockStop(index=len(self._done))
        self._done.append(_filled(block, text))
        self._open, self._pieces = None, []

    def _begin(self, block: ContentBlock) -> Iterator[MessageEvent]:
        """Goes on with a block of this kind, but for calls, each of which is one."""
        if type(self._open) is type(block) and not isinstance(block, ToolUseBlock):
            return
        yield from self.finish()
        self._open = block
        yield ContentBlockStart(index=len(self._done), content_block=block)

    def _call(self, call: ToolCallDelta) -> Iterator[MessageEvent]:
        if call.id:
            yield from self._begin(ToolUseBlock(id=call.id, name=call.name, input=NO_INPUT))
        if call.arguments:
            yield self._grow(call.arguments, BlockInputDelta(call.arguments))

    def _grow(self, text: str, delta: BlockDelta) -> MessageEvent:
        self._pieces.append(text)
        return ContentBlockDelta(index=len(self._done), delta=delta)


def _filled(block: ContentBlock, text: str) -> ContentBlock:
    match block:
        case TextBlock():
            return TextBlock(text=text)
        case ThinkingBlock():
            return ThinkingBlock(thinking=text, signature=SIGNATURE)
        case ToolUseBlock():
            written = msgspec.Raw(text.encode()) if _is_object(text) else NO_INPUT
            return msgspec.structs.replace(block, input=written)


def _is_object(text: str) -> bool:
    """False for arguments that were cut, or that are no JSON: a client could not read them."""
    try:
        return isinstance(json.loads(text, parse_constant=_no_json), dict)
    except (ValueError, RecursionError):
        return False


def _no_json(constant: str) -> None:
    raise ValueError(constant)
