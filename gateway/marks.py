"""Finding a mark in text that comes in pieces. Pure; used by the readers of answers."""

from __future__ import annotations


def find_mark(text: str, mark: str) -> tuple[int, bool]:
    """Where the mark begins, and whether it is there whole; where it might begin with what comes next, else the end."""
    position = text.find(mark)
    if position >= 0:
        return position, True
    for position in range(max(0, len(text) - len(mark) + 1), len(text)):
        if mark.startswith(text[position:]):
            return position, False
    return len(text), False
