"""From the parts of an answer to the items of a response, and to the events that tell of them.

Each delta opens, grows or closes items. Reasoning ends when anything else begins, and a call when the next one does;
the message stays open to the end, so that the same answer makes the same items however it is cut. Pure; used by
`response_reply`, which numbers the events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec

from gateway.answer import AnswerDelta, ToolCallDelta
from gateway.logprobs import ToldToken, chat_logprobs
from gateway.protocol.response_objects import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    FunctionCallItem,
    ItemAdded,
    ItemDone,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    TextDelta,
    TextDone,
)
from gateway.protocol.responses import TokenLogprob
from gateway.response_ids import output_item_id


class OutputWriter:
    """The output of one response while it comes."""

    def __init__(self, response_id: str) -> None:
        self._response_id = response_id
        self._drafts: list[_Draft] = []
        self._message: _Message | None = None
        self._reasoning: _Reasoning | None = None
        self._calls: list[_Call] = []

    @property
    def items(self) -> tuple[OutputItem, ...]:
        """Those that are complete, or as complete as they will be."""
        return tuple(draft.done for draft in self._drafts if draft.done is not None)

    @property
    def reasoning_share(self) -> float:
        """Of the answer's text, from 0 to 1."""
        num_chars = sum(draft.num_chars for draft in self._drafts)
        return self._reasoning.num_chars / num_chars if self._reasoning is not None and num_chars else 0.0

    def add(self, delta: AnswerDelta, tokens: Sequence[ToldToken] = ()) -> Iterator[Event]:
        """`tokens` are told with the message, whatever part of the answer they made."""
        if delta.reasoning:
            yield from self._reason(delta.reasoning)
        if delta.content:
            yield from self._say(delta.content, tokens)
        for call in delta.tool_calls:
            yield from self._call(call)

    def finish(self, tokens: Sequence[ToldToken] = (), *, is_cut: bool) -> Iterator[Event]:
        """The end. An answer of nothing is an empty message; of one that is cut, what was open is incomplete."""
        if (tokens and self._message is not None) or not self._drafts:
            yield from self._say("", tokens)
        cut = self._open_draft if is_cut else None
        for draft in self._drafts:
            yield from draft.close("incomplete" if draft is cut else "completed")

    @property
    def _open_draft(self) -> _Draft | None:
        """What the next text would belong to, if one knew. Behind a call that is whole it is the message again."""
        if not self._calls:
            return self._drafts[-1]
        return self._message if self._calls[-1].is_whole else self._calls[-1]

    def _reason(self, text: str) -> Iterator[Event]:
        if self._reasoning is None:
            self._reasoning = _Reasoning(*self._place("rs"))
            yield from self._open(self._reasoning)
        yield self._reasoning.grow(text)

    def _say(self, text: str, tokens: Sequence[ToldToken]) -> Iterator[Event]:
        if self._message is None:
            self._message = _Message(*self._place("msg"))
            yield from self._open(self._message)
        yield self._message.grow(text, tokens)

    def _call(self, more: ToolCallDelta) -> Iterator[Event]:
        if more.index == len(self._calls):
            if self._calls:
                yield from self._calls[-1].close("completed")
            self._calls.append(_Call(*self._place("fc"), call_id=more.id, name=more.name))
            yield from self._open(self._calls[-1])
        if more.arguments:
            yield self._calls[more.index].grow(more.arguments)

    def _open(self, draft: _Draft) -> Iterator[Event]:
        if self._reasoning is not None and draft is not self._reasoning:
            yield from self._reasoning.close("completed")
        self._drafts.append(draft)
        yield from draft.open()

    def _place(self, kind: str) -> tuple[str, int]:
        return output_item_id(kind, self._response_id, len(self._drafts)), len(self._drafts)


class _Draft(ABC):
    """An item that may still grow."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self.id = item_id
        self.index = output_index
        self.done: OutputItem | None = None
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def num_chars(self) -> int:
        return sum(map(len, self._pieces))

    def open(self) -> Iterator[Event]:
        yield ItemAdded(output_index=self.index, item=self._item("in_progress"))

    def close(self, status: ItemStatus) -> Iterator[Event]:
        """Once; later calls do nothing."""
        if self.done is None:
            self.done = self._item(status)
            yield from self._closing()
            yield ItemDone(output_index=self.index, item=self.done)

    @abstractmethod
    def _item(self, status: ItemStatus) -> OutputItem:
        """As it is now; without its text while it is in progress."""

    @abstractmethod
    def _closing(self) -> Iterator[Event]: ...


class _Message(_Draft):
    _NEW: ClassVar = OutputText(text="")

    def __init__(self, item_id: str, output_index: int) -> None:
        super().__init__(item_id, output_index)
        self._logprobs: list[TokenLogprob] = []

    def open(self) -> Iterator[Event]:
        yield from super().open()
        yield PartAdded(item_id=self.id, output_index=self.index, part=self._NEW)

    def grow(self, text: str, tokens: Sequence[ToldToken]) -> Event:
        logprobs = _logprobs(tokens)
        self._pieces.append(text)
        self._logprobs += logprobs
        return TextDelta(item_id=self.id, output_index=self.index, delta=text, logprobs=logprobs)

    @property
    def _part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=tuple(self._logprobs))

    def _item(self, status: ItemStatus) -> OutputMessage:
        return OutputMessage(id=self.id, status=status, content=() if status == "in_progress" else (self._part,))

    def _closing(self) -> Iterator[Event]:
        part = self._part
        yield TextDone(item_id=self.id, output_index=self.index, text=part.text, logprobs=part.logprobs)
        yield PartDone(item_id=self.id, output_index=self.index, part=part)


class _Reasoning(_Draft):
    def open(self) -> Iterator[Event]:
        yield from super().open()
        yield PartAdded(item_id=self.id, output_index=self.index, part=ReasoningText(text=""))

    def grow(self, text: str) -> Event:
        self._pieces.append(text)
        return ReasoningDelta(item_id=self.id, output_index=self.index, delta=text)

    def _item(self, status: ItemStatus) -> ReasoningItem:
        content = () if status == "in_progress" else (ReasoningText(text=self.text),)
        return ReasoningItem(id=self.id, status=status, content=content)

    def _closing(self) -> Iterator[Event]:
        yield ReasoningDone(item_id=self.id, output_index=self.index, text=self.text)
        yield PartDone(item_id=self.id, output_index=self.index, part=ReasoningText(text=self.text))


class _Call(_Draft):
    def __init__(self, item_id: str, output_index: int, *, call_id: str, name: str) -> None:
        super().__init__(item_id, output_index)
        self._call_id = call_id
        self._name = name

    def grow(self, arguments: str) -> Event:
        self._pieces.append(arguments)
        return ArgumentsDelta(item_id=self.id, output_index=self.index, delta=arguments)

    @property
    def is_whole(self) -> bool:
        """Arguments are an object, and nothing follows its last brace."""
        try:
            msgspec.json.decode(self.text, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            return False
        return True

    def _item(self, status: ItemStatus) -> FunctionCallItem:
        arguments = "" if status == "in_progress" else self.text
        return FunctionCallItem(id=self.id, status=status, call_id=self._call_id, name=self._name, arguments=arguments)

    def _closing(self) -> Iterator[Event]:
        yield ArgumentsDone(item_id=self.id, output_index=self.index, name=self._name, arguments=self.text)


def _logprobs(tokens: Sequence[ToldToken]) -> tuple[TokenLogprob, ...]:
    """As a chat has them, but that bytes are never null: those of a special token are none."""
    told = chat_logprobs(tokens)
    return () if told is None else tuple(map(_with_bytes, told.content))


def _with_bytes(token: TokenLogprob) -> TokenLogprob:
    top = tuple(msgspec.structs.replace(one, bytes=one.bytes or ()) for one in token.top_logprobs)
    return msgspec.structs.replace(token, bytes=token.bytes or (), top_logprobs=top)
