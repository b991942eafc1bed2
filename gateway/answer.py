"""What a model's answer consists of: content, reasoning and tool calls, found in its text while it comes.

Pure; knows neither wire formats nor workers. A reader belongs to one sequence, and the same text gives the same parts
however it is cut, so that a streamed answer says what the whole one says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Final, Protocol

from model_registry.contract import ToolCall

_PIECES: Final = re.compile(r"[\w\s]*[^\w\s]|[\w\s]+")


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
    of_one_call = (list(more) for _, more in groupby(deltas, attrgetter("index")))
    return tuple(replace(more[0], arguments="".join(one.arguments for one in more)) for more in of_one_call)


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


def read_in_order(reader: AnswerReader, text: str, *, ended: bool) -> list[AnswerDelta]:
    """What the text adds to the answer, in deltas none of which has content from behind its calls.

    Where a reader sees all of a text at once, its delta does not tell which came first. In pieces of one mark each it
    does: a call has ended where there is something else than letters and spaces.
    """
    if isinstance(reader, PlainReader):
        return [AnswerDelta(text)]
    groups: list[list[AnswerDelta]] = [[]]
    has_calls = False
    for delta in (*map(reader.feed, _PIECES.findall(text)), *((reader.finish(),) if ended else ())):
        if delta.content and has_calls:
            groups.append([])
            has_calls = False
        groups[-1].append(delta)
        has_calls = has_calls or bool(delta.tool_calls)
    return [_joined(group) for group in groups]


def _joined(deltas: Sequence[AnswerDelta]) -> AnswerDelta:
    """Their sum, made at once."""
    return AnswerDelta(
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        one_for_each_call(call for delta in deltas for call in delta.tool_calls),
    )
