"""Finding stopping sequences in a growing stream without ever showing part of one.

One matcher serves both kinds of stops: strings matched on the text, character by character, and sequences of token ids
matched token by token. What might be the beginning of a stop is held back until it is known. The stop that is
complete first wins, so the result does not depend on how the stream was cut into pieces. Pure; called by `TextStream`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

Stream = TypeVar("Stream", str, tuple[int, ...])


class _Pattern:
    """Knuth-Morris-Pratt automaton of one stop: linear in the stream, whatever the stop is."""

    __slots__ = ("_borders", "_symbols", "num_matched")

    def __init__(self, symbols: str | tuple[int, ...]) -> None:
        self._symbols = symbols
        self._borders = _borders(symbols)
        self.num_matched = 0

    def advance(self, symbol: Any) -> bool:
        """Take one symbol; True when the stop is complete with it."""
        while self.num_matched and self._symbols[self.num_matched] != symbol:
            self.num_matched = self._borders[self.num_matched - 1]
        if self._symbols[self.num_matched] == symbol:
            self.num_matched += 1
        return self.num_matched == len(self._symbols)


def _borders(symbols: str | tuple[int, ...]) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(symbols)
    length = 0
    for end in range(1, len(symbols)):
        while length and symbols[length] != symbols[end]:
            length = borders[length - 1]
        if symbols[length] == symbols[end]:
            length += 1
        borders[end] = length
    return borders


class StopMatcher(Generic[Stream]):
    """Passes a stream on, up to but without the first complete stop."""

    __slots__ = ("_held", "_patterns", "found")

    def __init__(self, stops: Iterable[Stream], empty: Stream) -> None:
        self._patterns = [_Pattern(stop) for stop in stops]
        self._held: Stream = empty
        self.found: Stream | None = None
        """The stop that was completed."""

    def feed(self, items: Stream) -> tuple[Stream, bool]:
        """What may be passed on now, and whether a stop was completed; nothing may be fed after a stop."""
        buffer = self._held + items
        for position in range(len(self._held), len(buffer)):
            num_stopped = self._advance(buffer[position])
            if num_stopped:
                self._held = buffer[:0]
                self.found = buffer[position + 1 - num_stopped : position + 1]
                return buffer[: position + 1 - num_stopped], True
        num_held = max((pattern.num_matched for pattern in self._patterns), default=0)
        num_passed = len(buffer) - num_held
        self._held = buffer[num_passed:]
        return buffer[:num_passed], False

    def flush(self) -> Stream:
        """What was held back and will not become a stop, because the stream ended."""
        held, self._held = self._held, self._held[:0]
        return held

    def _advance(self, symbol: Any) -> int:
        """Length of the longest stop that is complete with this symbol; 0 when none is."""
        complete = 0
        for pattern in self._patterns:
            if pattern.advance(symbol):
                complete = max(complete, pattern.num_matched)
        return complete
