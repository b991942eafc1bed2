"""From the items of a response's conversation to messages for a model, and to what is kept of them.

A turn of an assistant is several items (reasoning, messages, calls) and one message of a chat. Pure: knows the
request's items and the contract, neither the store nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeGuard

from pydantic import Discriminator, Tag, TypeAdapter

from gateway.errors import InvalidRequestError, shortened
from gateway.protocol.response_items import FunctionCall, FunctionCallOutput, KeptItem, Message, Reasoning
from gateway.response_ids import input_item_id
from model_registry.contract import ChatMessage, ToolCall

Json = dict[str, Any]


def _kind(item: Json) -> str:
    """A message may leave out its type."""
    kind: str = item.get("type", "message")
    return kind


_KEPT: TypeAdapter[list[KeptItem]] = TypeAdapter(
    list[
        Annotated[
            Annotated[Message, Tag("message")]
            | Annotated[FunctionCall, Tag("function_call")]
            | Annotated[FunctionCallOutput, Tag("function_call_output")]
            | Annotated[Reasoning, Tag("reasoning")],
            Discriminator(_kind),
        ]
    ]
)

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def chat_messages(instructions: str | None, items: Iterable[KeptItem]) -> tuple[ChatMessage, ...]:
    """Raises `InvalidRequestError` where the output of a call comes without the call."""
    messages = [] if instructions is None else [ChatMessage("system", instructions)]
    names: dict[str, str] = {}
    turn = _Turn()
    for item in items:
        if isinstance(item, FunctionCall):
            names[item.call_id] = item.name
        if _is_assistants(item):
            turn.add(item)
            continue
        messages += turn.messages
        turn = _Turn()
        messages.append(_from_elsewhere(item, names))
    return (*messages, *turn.messages)


def _is_assistants(item: KeptItem) -> TypeGuard[FunctionCall | Reasoning | Message]:
    return isinstance(item, FunctionCall | Reasoning) or (isinstance(item, Message) and item.role == "assistant")


@dataclass(slots=True)
class _Turn:
    """An assistant's, from the items of it so far. They may come in any order: the text goes on behind a call."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    is_empty: bool = True

    def add(self, item: FunctionCall | Reasoning | Message) -> None:
        self.is_empty = False
        match item:
            case Message():
                self.texts.append(item.text)
            case Reasoning():
                self.thoughts.append(item.text)
            case FunctionCall():
                self.calls.append(ToolCall(item.call_id, item.name, item.arguments))

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """One, or none of no items. What several items say are lines, as parts of a text are."""
        if self.is_empty:
            return ()
        return (ChatMessage("assistant", _lines(self.texts), _lines(self.thoughts), tuple(self.calls)),)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(filter(None, texts))


def _from_elsewhere(item: KeptItem, names: dict[str, str]) -> ChatMessage:
    """What an assistant did not say."""
    match item:
        case FunctionCallOutput():
            return ChatMessage("tool", item.text, tool_call_id=item.call_id, name=_name_of_call(item, names))
        case Message():
            return ChatMessage("system" if item.role == "developer" else item.role, item.text)
    raise TypeError(f"{type(item).__name__} is an assistant's")


def _name_of_call(item: FunctionCallOutput, names: dict[str, str]) -> str:
    if item.call_id not in names:
        raise InvalidRequestError(
            f"No tool call found for function call output with call_id {shortened(item.call_id)}.", param="input"
        )
    return names[item.call_id]


def parse_items(kept: Sequence[Json]) -> list[KeptItem]:
    """Items as they were kept, or as this server sent them."""
    return _KEPT.validate_python(kept)


def items_to_keep(items: Iterable[KeptItem]) -> list[Json]:
    """A response's input as it is kept: what `items_in_full` needs of it, which is no larger than what was sent."""
    return [_in_short(item) for item in items]


def items_in_full(items: Iterable[KeptItem], response_id: str) -> list[Json]:
    """A response's input as it is listed: in OpenAI's full form, each item with an id of its own."""
    return [_in_full(item, response_id, position) for position, item in enumerate(items)]


def id_of_kept(item: Json, response_id: str, position: int) -> str:
    """Of an item of a response's input, as it is kept."""
    return input_item_id(_ID_PREFIXES[_kind(item)], response_id, position)


def _in_short(item: KeptItem) -> Json:
    if not isinstance(item, Message):
        return item.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"id", "status"})
    if isinstance(item.content, str):
        return {"role": item.role, "content": item.content}
    return {"role": item.role, "content": [{"type": part.type, "text": part.text} for part in item.content]}


def _in_full(item: KeptItem, response_id: str, position: int) -> Json:
    full = _in_short(item)
    if isinstance(item, Message):
        full |= {"type": "message", "content": [_part(one, item.role) for one in _texts(item)]}
    elif isinstance(item, Reasoning):
        full["summary"] = []
    return full | {"id": id_of_kept(full, response_id, position), "status": "completed"}


def _texts(message: Message) -> list[str]:
    return [message.content] if isinstance(message.content, str) else [part.text for part in message.content]


def _part(text: str, role: str) -> Json:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}
