"""The messages of POST /v1/messages: Anthropic's blocks, and the conversation that they come to.

What the server gave out as content is taken back as it came. Knows Anthropic's wire format and the contract's messages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from gateway.errors import InvalidRequestError, shortened
from gateway.protocol.validation import LIST, TEXT, RequestModel, invalid, only_neutral, tag, text_or_list
from model_registry.contract import ChatMessage, ToolCall

KINDS = ("text", "thinking", "tool_use", "tool_result")
OTHER_KINDS = (
    "bash_code_execution_tool_result", "browser_state", "code_execution_tool_result", "container_upload", "document",
    "image", "redacted_thinking", "search_result", "server_tool_use", "text_editor_code_execution_tool_result",
    "tool_reference", "tool_search_tool_result", "web_fetch_tool_result", "web_search_tool_result",
)  # fmt: skip
"""Media, and what Anthropic's own tools leave in a conversation."""
CACHE_CONTROL = "Accepted without effect: prefixes are cached as long as there is room."
_KINDS_OF_ROLE = {"user": ("text", "tool_result"), "assistant": ("text", "thinking", "tool_use"), "system": ("text",)}
_UNREAD = "unread"


class _UnreadBlock(RequestModel):
    """Refuses whatever else there may be, by its kind."""

    type: Annotated[str, AfterValidator(lambda kind: _refused(kind))]


def _refused(kind: str) -> str:
    if kind in (*KINDS, *OTHER_KINDS):
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{kind}' blocks are not read here.")
    told = ", ".join(f"'{one}'" for one in KINDS)
    raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {told}.")


def _kind_among(*kinds: str) -> Discriminator:
    def kind_of(block: Any) -> str:
        kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
        return tag(kind if kind in kinds else _UNREAD)

    return Discriminator(kind_of)


class _CachedBlock(RequestModel):
    cache_control: Any = Field(None, description=CACHE_CONTROL)


class TextParam(_CachedBlock):
    type: Literal["text"] = Field(description="A text.")
    text: str = Field(description="What it says.")

    citations: only_neutral([]) = None  # type: ignore[valid-type]


class ThinkingParam(RequestModel):
    type: Literal["thinking"] = Field(description="What the model thought, of an assistant.")
    thinking: str = Field(description="What it said.")
    signature: str | None = Field(None, description="Accepted without effect: nothing is signed here.")


class ToolUseParam(_CachedBlock):
    type: Literal["tool_use"] = Field(description="A call, of an assistant.")
    id: str = Field(min_length=1, description="What its result refers to.")
    name: str = Field(min_length=1, description="The tool that is called.")
    input: dict[str, Any] = Field(description="Its arguments.")

    caller: only_neutral({"type": "direct"}) = None  # type: ignore[valid-type]
    toolset_name: only_neutral() = None  # type: ignore[valid-type]


ResultBlock = Annotated[
    Annotated[TextParam, Tag(tag("text"))] | SkipJsonSchema[Annotated[_UnreadBlock, Tag(tag(_UNREAD))]],
    _kind_among("text"),
]
ResultContent = Annotated[
    Annotated[str | None, Tag(TEXT)] | Annotated[list[ResultBlock], Tag(LIST)], Discriminator(text_or_list)
]


class ToolResultParam(_CachedBlock):
    type: Literal["tool_result"] = Field(description="What came of a call, of a user.")
    tool_use_id: str = Field(min_length=1, description="The call, of an earlier message.")
    content: ResultContent = Field(None, description="A text, or texts, which become lines.")
    is_error: bool | None = Field(None, description="True: the model reads `Error: ` before it.")

    toolset_name: only_neutral() = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        said = self.content or ""
        text = said if isinstance(said, str) else "\n".join(one.text for one in said if isinstance(one, TextParam))
        return f"Error: {text}" if self.is_error else text


Block = Annotated[
    Annotated[TextParam, Tag(tag("text"))]
    | Annotated[ThinkingParam, Tag(tag("thinking"))]
    | Annotated[ToolUseParam, Tag(tag("tool_use"))]
    | Annotated[ToolResultParam, Tag(tag("tool_result"))]
    | SkipJsonSchema[Annotated[_UnreadBlock, Tag(tag(_UNREAD))]],
    _kind_among(*KINDS),
]
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[Annotated[list[Block], Field(min_length=1)], Tag(LIST)],
    Discriminator(text_or_list),
]
System = Annotated[
    Annotated[str | None, Tag(TEXT)] | Annotated[list[ResultBlock], Tag(LIST)], Discriminator(text_or_list)
]


class MessageParam(RequestModel):
    role: Literal["user", "assistant", "system"] = Field(description="Who said it.")
    content: Content = Field(description="A text, or blocks.")

    @property
    def blocks(self) -> Sequence[Any]:
        return _blocks(self.content)


def _blocks(content: str | Sequence[Any]) -> Sequence[Any]:
    return [TextParam(type="text", text=content)] if isinstance(content, str) else content


def conversation_of(system: str | Sequence[Any] | None, messages: Sequence[MessageParam]) -> tuple[ChatMessage, ...]:
    """One message for each turn: what one side says in several messages is one.

    Raises `InvalidRequestError` where a block does not belong.
    """
    said: list[ChatMessage] = []
    for block in _blocks(system or ()):
        _say(said, ChatMessage("system", block.text))
    called: dict[str, str] = {}
    for index, message in enumerate(messages):
        for position, block in enumerate(message.blocks):
            path = f"messages[{index}].content[{position}]"
            _check_role(message.role, block.type, path)
            if isinstance(block, ToolUseParam):
                called[block.id] = block.name
            if isinstance(block, ToolResultParam) and block.tool_use_id not in called:
                raise _misplaced(
                    f"{path}.tool_use_id", f"'{shortened(block.tool_use_id)}' is no call of an earlier message"
                )
            _say(said, _spoken(message.role, block, called))
    return tuple(said)


def _check_role(role: str, kind: str, path: str) -> None:
    allowed = _KINDS_OF_ROLE[role]
    if kind not in allowed:
        told = ", ".join(f"'{one}'" for one in allowed)
        raise _misplaced(f"{path}.type", f"'{kind}' blocks are not said by this role, which has {told}")


def _misplaced(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")


def _spoken(role: str, block: Any, called: dict[str, str]) -> ChatMessage:
    """What one block says."""
    match block:
        case ThinkingParam():
            return ChatMessage(role, "", reasoning=block.thinking)
        case ToolUseParam():
            arguments = json.dumps(block.input, ensure_ascii=False)
            return ChatMessage(role, "", tool_calls=(ToolCall(block.id, block.name, arguments),))
        case ToolResultParam():
            name = called[block.tool_use_id]
            return ChatMessage("tool", block.text, tool_call_id=block.tool_use_id, name=name)
        case _:
            return ChatMessage(role, block.text)


def _say(said: list[ChatMessage], more: ChatMessage) -> None:
    """Adds to the turn of the same role, or begins one; each result of a tool stands alone."""
    if said and said[-1].role == more.role != "tool":
        last = said.pop()
        more = ChatMessage(
            more.role,
            _lines(last.content, more.content),
            _lines(last.reasoning, more.reasoning),
            last.tool_calls + more.tool_calls,
        )
    said.append(more)


def _lines(*texts: str) -> str:
    return "\n".join(text for text in texts if text)
