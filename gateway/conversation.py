"""From the items of a response's conversation to messages for a model, and to what is kept of them.

A turn of an assistant is several items (reasoning, a message, calls) and one message. Pure: knows the request's items
and the contract, neither the store nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from pydantic import TypeAdapter

from gateway.errors import InvalidRequestError, shortened
from gateway.protocol.response_items import FunctionCall, FunctionCallOutput, KeptItem, Message, Reasoning
from gateway.response_ids import input_item_id
from model_registry.contract import ChatMessage, ToolCall

_KEPT: TypeAdapter[list[KeptItem]] = TypeAdapter(list[KeptItem])

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}

Json = dict[str, Any]


def chat_messages(instructions: str | None, items: Iterable[KeptItem]) -> tuple[ChatMessage, ...]:
    """Raises `InvalidRequestError` where the output of a call comes without the call."""
    messages = [] if instructions is None else [ChatMessage("system", instructions)]
    names: dict[str, str] = {}
    for item in items:
        match item:
            case Message(role="assistant"):
                _add_text(messages, item.text)
            case Message():
                messages.append(ChatMessage("system" if item.role == "developer" else item.role, item.text))
            case Reasoning():
                messages.append(ChatMessage("assistant", "", reasoning=item.text))
            case FunctionCall():
                names[item.call_id] = item.name
                _add_call(messages, ToolCall(item.call_id, item.name, item.arguments))
            case FunctionCallOutput():
                name = _name_of_call(item, names)
                messages.append(ChatMessage("tool", item.text, tool_call_id=item.call_id, name=name))
    return tuple(messages)


def _add_text(messages: list[ChatMessage], text: str) -> None:
    """The text of an assistant goes with the reasoning that led to it."""
    if messages and _is_reasoning_only(messages[-1]):
        messages[-1] = msgspec.structs.replace(messages[-1], content=text)
    else:
        messages.append(ChatMessage("assistant", text))


def _is_reasoning_only(message: ChatMessage) -> bool:
    return message.role == "assistant" and not message.content and not message.tool_calls


def _add_call(messages: list[ChatMessage], call: ToolCall) -> None:
    """A call goes with whatever the assistant said before it."""
    if not messages or messages[-1].role != "assistant":
        messages.append(ChatMessage("assistant", ""))
    messages[-1] = msgspec.structs.replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))


def _name_of_call(item: FunctionCallOutput, names: dict[str, str]) -> str:
    if item.call_id not in names:
        raise InvalidRequestError(
            f"No tool call found for function call output with call_id {shortened(item.call_id)}.", param="input"
        )
    return names[item.call_id]


def parse_items(kept: Sequence[Json]) -> list[KeptItem]:
    """Items as they were kept, or as this server sent them."""
    return _KEPT.validate_python(kept)


def items_to_keep(items: Iterable[KeptItem], response_id: str) -> list[Json]:
    """A response's input as it is kept and listed: in OpenAI's full form, each item with an id of its own."""
    return [_in_full(item, response_id, position) for position, item in enumerate(items)]


def _in_full(item: KeptItem, response_id: str, position: int) -> Json:
    full = item.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(item, Message):
        full |= {"type": "message", "content": [_part(one, item.role) for one in _texts(item)]}
    elif isinstance(item, Reasoning):
        full["summary"] = []
    item_id = input_item_id(_ID_PREFIXES[full["type"]], response_id, position)
    return full | {"id": item_id, "status": "completed"}


def _texts(message: Message) -> list[str]:
    return [message.content] if isinstance(message.content, str) else [part.text for part in message.content]


def _part(text: str, role: str) -> Json:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}
