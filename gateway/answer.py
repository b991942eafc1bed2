"""What a model's answer consists of: content, reasoning and tool calls, found in its text while it comes.

Pure; knows neither wire formats nor workers. A reader belongs to one sequence, and the same text gives the same parts
however it is cut, so that a streamed answer says what the whole one says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from model_registry.contract import ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of one call. The first of an index has its id and name, and no other has."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """More of an answer; false when there is nothing. Of each call it has one delta."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)

    def __add__(self, later: AnswerDelta) -> AnswerDelta:
        calls = self.tool_calls + later.tool_calls
        return AnswerDelta(self.content + later.content, self.reasoning + later.reasoning, one_for_each_call(calls))


def one_for_each_call(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """As clients want them: they take two deltas of one chunk as two calls."""
    merged: list[ToolCallDelta] = []
    for delta in deltas:
        if merged and merged[-1].index == delta.index:
            merged[-1] = replace(merged[-1], arguments=merged[-1].arguments + delta.arguments)
        else:
            merged.append(delta)
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Answer:
    """All of it."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __add__(self, delta: AnswerDelta) -> Answer:
        calls = list(self.tool_calls)
        for more in delta.tool_calls:
            if more.index == len(calls):
                calls.append(ToolCall(more.id, more.name, more.arguments))
            else:
                call = calls[more.index]
                calls[more.index] = ToolCall(call.id, call.name, call.arguments + more.arguments)
        return Answer(self.content + delta.content, self.reasoning + delta.reasoning, tuple(calls))


class AnswerReader(Protocol):
    """Finds the parts of one sequence's answer."""

    @property
    def has_tool_calls(self) -> bool:
        """Whether the answer so far calls a tool."""

    def feed(self, text: str) -> AnswerDelta:
        """What is certain with this text; the rest is held back."""

    def finish(self) -> AnswerDelta:
        """What was held back, once the sequence has ended."""


class PlainReader:
    """An answer that is all content."""

    has_tool_calls = False

    def feed(self, text: str) -> AnswerDelta:
        return AnswerDelta(text)

    def finish(self) -> AnswerDelta:
        return AnswerDelta()
