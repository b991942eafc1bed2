"""From token ids to text while they come, without ever cutting a character.

A token's text depends on its neighbours: characters span tokens, and some tokenizers drop a leading space. So new ids
are decoded together with the ones just before them, and text is released once it no longer ends inside a character.
Pure but for the decode function it is given; called by `TextStream`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_HELD_TOKENS = 8
"""A character has at most four bytes, hence four tokens; more that stay undecodable are not a character to wait for."""
NUM_CONTEXT_TOKENS = 6


class Detokenizer:
    """Incremental decoding of one sequence."""

    __slots__ = ("_decode", "_prefix_start", "_read_end", "_token_ids")

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int]) -> None:
        self._decode = decode
        self._token_ids = list(prompt_token_ids[-NUM_CONTEXT_TOKENS:])
        self._prefix_start = 0
        self._read_end = len(self._token_ids)

    def feed(self, token_ids: Sequence[int]) -> str:
        """Text that is certain with these ids."""
        self._token_ids.extend(token_ids)
        num_held = len(self._token_ids) - self._read_end
        return self._release(even_incomplete=num_held > MAX_HELD_TOKENS)

    def flush(self) -> str:
        """What is left at the end, an incomplete character as U+FFFD."""
        return self._release(even_incomplete=True)

    def _release(self, *, even_incomplete: bool) -> str:
        known = self._decode(self._token_ids[self._prefix_start : self._read_end])
        text = self._decode(self._token_ids[self._prefix_start :])
        if text == known:  # special tokens: neither text nor part of a character to wait for
            del self._token_ids[self._read_end :]
            return ""
        if len(text) <= len(known) or (text.endswith(REPLACEMENT) and not even_incomplete):
            return ""
        self._token_ids = self._token_ids[self._read_end :]
        self._prefix_start, self._read_end = 0, len(self._token_ids)
        return text[len(known) :]
