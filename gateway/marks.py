"""Text that comes in pieces, and the marks in it. Pure; used by the readers of answers.

A reader takes what it has looked at, so that however long an answer is, what waits here is short, and every character
is looked at a few times at most.
"""

from __future__ import annotations

import re
from typing import Final

STRIDE: Final = 4096
"""Characters that are looked at together."""
_SPACES: Final = re.compile(r"\s+")


def find_mark(text: str, mark: str) -> tuple[int, bool]:
    """Where the mark begins, and whether it is there whole; where it might begin with what comes next, else the end."""
    position = text.find(mark)
    if position >= 0:
        return position, True
    for position in range(max(0, len(text) - len(mark) + 1), len(text)):
        if mark.startswith(text[position:]):
            return position, False
    return len(text), False


class ComingText:
    """What has come of a text and has not been taken."""

    def __init__(self) -> None:
        self._text = ""
        self._position = 0

    def add(self, text: str) -> None:
        self._text = self._text[self._position :] + text
        self._position = 0

    def ahead(self, num_chars: int = STRIDE) -> str:
        """The next characters, as many as there are."""
        return self._text[self._position : self._position + num_chars]

    def take(self, num_chars: int) -> str:
        taken = self.ahead(num_chars)
        self._position += len(taken)
        return taken

    def take_spaces(self) -> str:
        """White space, if any comes next."""
        spaces = _SPACES.match(self._text, self._position)
        return self.take(spaces.end() - spaces.start()) if spaces else ""

    def take_all(self) -> str:
        return self.take(len(self._text))
