"""Reasoning that a model writes before its answer, between two marks. What comes after is for another reader.

Whitespace around the reasoning belongs to neither. Reasoning that nothing closes goes on to the end; marks anywhere but
at the beginning of an answer are content.
"""

from __future__ import annotations

from collections.abc import Generator

from gateway.answer import AnswerDelta, AnswerReader
from gateway.marks import ComingText, find_mark
from model_registry.tool_formats import ReasoningSyntax


class ReasoningReader:
    """Reads one answer; `inner` reads what is not reasoning."""

    def __init__(self, syntax: ReasoningSyntax, inner: AnswerReader) -> None:
        self._syntax = syntax
        self._inner = inner
        self._text = ComingText()
        self._steps = self._read()
        self._is_answering = False
        self._is_reasoning = False
        self._held: list[str] = []
        """White space that is part of something only if more follows."""
        self._reasoning: list[str] = []

    @property
    def has_tool_calls(self) -> bool:
        return self._inner.has_tool_calls

    def feed(self, text: str) -> AnswerDelta:
        self._text.add(text)
        next(self._steps, None)
        delta = AnswerDelta(reasoning="".join(self._reasoning))
        self._reasoning.clear()
        return delta + self._inner.feed(self._take_held()) if self._is_answering else delta

    def finish(self) -> AnswerDelta:
        held = self._take_held()
        if self._is_reasoning:
            return AnswerDelta(reasoning=held.rstrip()) + self._inner.finish()
        return (self._inner.feed(held) if held else AnswerDelta()) + self._inner.finish()

    def _take_held(self) -> str:
        held = "".join((*self._held, self._text.take_all()))
        self._held.clear()
        return held

    def _read(self) -> Generator[None, None, None]:
        """To where the answer begins, pausing wherever more text is needed."""
        if (yield from self._opens()):
            self._is_reasoning = True
            yield from self._skip_spaces()
            yield from self._read_reasoning()
            self._is_reasoning = False
            yield from self._skip_spaces()
        self._is_answering = True

    def _opens(self) -> Generator[None, None, bool]:
        opening = self._syntax.opening
        while True:
            self._held.append(self._text.take_spaces())
            begun = self._text.ahead(len(opening))
            if begun == opening:
                self._text.take(len(opening))
                self._held.clear()
                return True
            if not opening.startswith(begun):
                return False
            yield

    def _skip_spaces(self) -> Generator[None, None, None]:
        self._text.take_spaces()
        while not self._text.ahead(1):
            yield
            self._text.take_spaces()

    def _read_reasoning(self) -> Generator[None, None, None]:
        """To behind the mark that closes it."""
        while True:
            position, is_closed = find_mark(self._text.ahead(), self._syntax.closing)
            self._reason(self._text.take(position))
            if is_closed:
                self._text.take(len(self._syntax.closing))
                self._held.clear()
                return
            if not position:
                yield

    def _reason(self, text: str) -> None:
        said = text.rstrip()
        if said:
            self._reasoning += (*self._held, said)
            self._held.clear()
        self._held.append(text[len(said) :])
