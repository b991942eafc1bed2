"""Tools for models whose template knows none: described in a system message, in words that every model is used to.

The calls of earlier answers, and what came of them, become text in the same form, Hermes'. Pure; all of it is text of
clients to a tokenizer, so that nothing in it is control.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

from gateway.tool_use import Tool
from model_registry.contract import ChatMessage, ToolCall

_INTRODUCTION: Final = "You can call functions. Their signatures, one JSON object per line within <tools></tools>:"
_INSTRUCTION: Final = (
    "To call a function, write a JSON object with its name and its arguments within <tool_call></tool_call>, one for "
    "each call:\n"
    '<tool_call>\n{"name": <name of the function>, "arguments": <object with its arguments>}\n</tool_call>'
)


def with_tools_described(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], default_system_message: str = ""
) -> list[ChatMessage]:
    """The conversation as plain text messages. The description goes into the system message at its beginning, which is
    made where there is none, after the `default_system_message` that it takes the place of."""
    plain = [one for _, group in groupby(map(_in_words, messages), _kind) for one in _merged(list(group))]
    if not tools:
        return plain
    if plain and plain[0].role == "system":
        first, *rest = plain
    else:
        first, rest = ChatMessage("system", default_system_message), plain
    said = [first.content] if first.content else []
    return [ChatMessage("system", "\n\n".join([*said, description_of(tools)])), *rest]


def description_of(tools: Sequence[Tool]) -> str:
    lines = "\n".join(_json(tool.as_dict()) for tool in tools)
    return f"{_INTRODUCTION}\n<tools>\n{lines}\n</tools>\n\n{_INSTRUCTION}"


def _kind(message: ChatMessage) -> str:
    return "tool" if message.tool_call_id else message.role


def _in_words(message: ChatMessage) -> ChatMessage:
    if message.role == "tool":
        content = f"<tool_response>\n{message.content}\n</tool_response>"
        return ChatMessage("user", content, tool_call_id=message.tool_call_id)
    said = [message.content] if message.content else []
    content = "\n".join([*said, *map(_call_in_words, message.tool_calls)])
    return ChatMessage(message.role, content, message.reasoning, name=message.name)


def _merged(group: list[ChatMessage]) -> list[ChatMessage]:
    """The results of calls that were made together are one turn."""
    if not group[0].tool_call_id:
        return group
    return [ChatMessage("user", "\n".join(message.content for message in group))]


def _call_in_words(call: ToolCall) -> str:
    return f'<tool_call>\n{{"name": {_json(call.name)}, "arguments": {_rewritten(call.arguments)}}}\n</tool_call>'


def _rewritten(arguments: str) -> str:
    """As models write JSON; what is none stays a text."""
    try:
        return _json(json.loads(arguments))
    except (ValueError, RecursionError):
        return _json(arguments)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
