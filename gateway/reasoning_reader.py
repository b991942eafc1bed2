"""Reasoning that a model writes before its answer, between two marks. What comes after is for another reader.

Whitespace around the reasoning belongs to neither. Reasoning that nothing closes goes on to the end; marks anywhere but
at the beginning of an answer are content.
"""

from __future__ import annotations

from enum import Enum, auto

from gateway.answer import AnswerDelta, AnswerReader
from gateway.marks import find_mark
from model_registry.tool_formats import ReasoningSyntax


class _Place(Enum):
    BEGINNING = auto()
    REASONING = auto()
    GAP = auto()
    """Behind the reasoning, before the answer."""
    ANSWER = auto()


class ReasoningReader:
    """Reads one answer; `inner` reads what is not reasoning."""

    def __init__(self, syntax: ReasoningSyntax, inner: AnswerReader) -> None:
        self._syntax = syntax
        self._inner = inner
        self._place = _Place.BEGINNING
        self._held = ""
        self._has_reasoned = False

    @property
    def has_tool_calls(self) -> bool:
        return self._inner.has_tool_calls

    def feed(self, text: str) -> AnswerDelta:
        return self._read(self._take_held() + text)

    def finish(self) -> AnswerDelta:
        held = self._take_held()
        if self._place is _Place.BEGINNING:
            return self._inner.feed(held) + self._inner.finish()
        reasoning = held.rstrip() if self._place is _Place.REASONING else ""
        return AnswerDelta(reasoning=reasoning) + self._inner.finish()

    def _take_held(self) -> str:
        held, self._held = self._held, ""
        return held

    def _read(self, text: str) -> AnswerDelta:
        match self._place:
            case _Place.BEGINNING:
                return self._read_beginning(text)
            case _Place.REASONING:
                return self._read_reasoning(text)
            case _Place.GAP:
                return self._read_gap(text)
            case _Place.ANSWER:
                return self._inner.feed(text)

    def _read_beginning(self, text: str) -> AnswerDelta:
        begun, opening = text.lstrip(), self._syntax.opening
        if begun.startswith(opening):
            self._place = _Place.REASONING
            return self._read_reasoning(begun[len(opening) :])
        if opening.startswith(begun):
            self._held = text
            return AnswerDelta()
        self._place = _Place.ANSWER
        return self._inner.feed(text)

    def _read_reasoning(self, text: str) -> AnswerDelta:
        if not self._has_reasoned:
            text = text.lstrip()
        position, is_closed = find_mark(text, self._syntax.closing)
        reasoning = text[:position].rstrip()
        self._has_reasoned = self._has_reasoned or bool(reasoning)
        if not is_closed:
            self._held = text[len(reasoning) :]
            return AnswerDelta(reasoning=reasoning)
        self._place = _Place.GAP
        return AnswerDelta(reasoning=reasoning) + self._read_gap(text[position + len(self._syntax.closing) :])

    def _read_gap(self, text: str) -> AnswerDelta:
        begun = text.lstrip()
        if not begun:
            return AnswerDelta()
        self._place = _Place.ANSWER
        return self._inner.feed(begun)
