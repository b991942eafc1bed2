"""Generated tokens to shown text: token stops → detokenizer → text stops, each holding back what is not yet certain.

One per sequence, made by the engine. Knows nothing of scheduling or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from model_registry.contract import SamplingParams
from workers.engine.detokenizer import Detokenizer
from workers.engine.stops import StopMatcher

MAX_OPENING_TOKENS: Final = 16
"""An opening, and line breaks behind it."""


class TextStream:
    """The text of one sequence as its client may see it."""

    __slots__ = ("_detokenizer", "_min_tokens", "_num_fed", "_repeated", "_text_stops", "_token_stops")

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int], sampling: SamplingParams
    ) -> None:
        self._detokenizer = Detokenizer(decode, prompt_token_ids)
        single_tokens = ((token_id,) for token_id in sampling.stop_token_ids)
        self._token_stops = StopMatcher((*single_tokens, *sampling.stop_token_sequences), ())
        self._text_stops = StopMatcher(sampling.stop, "")
        self._min_tokens = sampling.min_tokens
        self._num_fed = 0
        self._repeated = _repeated(decode, prompt_token_ids, sampling.repeats_opening)

    @property
    def stop(self) -> str | None:
        """The string that ended the text."""
        return self._text_stops.found

    def feed(self, token_id: int) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop ended the sequence."""
        if not self._repeated:
            return self._feed(token_id)
        text, stopped = self._feed(token_id)
        return self._take_repeated() + text, stopped

    def flush(self) -> tuple[str, bool]:
        """Text still held back when the sequence ends otherwise; it may itself hold a stop."""
        text, stopped = self._flush()
        return self._take_repeated() + text, stopped

    def _take_repeated(self) -> str:
        repeated, self._repeated = self._repeated, ""
        return repeated

    def _feed(self, token_id: int) -> tuple[str, bool]:
        self._num_fed += 1
        if self._num_fed < self._min_tokens:
            return self._detokenizer.feed((token_id,)), False
        token_ids, stopped_by_tokens = self._token_stops.feed((token_id,))
        text, stopped_by_text = self._text_stops.feed(self._detokenizer.feed(token_ids) if token_ids else "")
        if stopped_by_text:
            return text, True
        if stopped_by_tokens:
            return text + self._finish_text()[0], True
        return text, False

    def _flush(self) -> tuple[str, bool]:
        token_ids = self._token_stops.flush()
        text, stopped = self._text_stops.feed(self._detokenizer.feed(token_ids) if token_ids else "")
        if stopped:
            return text, True
        rest, stopped = self._finish_text()
        return text + rest, stopped

    def _finish_text(self) -> tuple[str, bool]:
        """What the detokenizer and then the text stops still hold, and whether that completes a stop."""
        text, stopped = self._text_stops.feed(self._detokenizer.flush())
        return (text, True) if stopped else (text + self._text_stops.flush(), False)


def _repeated(decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int], opening: str) -> str:
    """The opening where the prompt ends with it."""
    if not opening:
        return ""
    end = decode(prompt_token_ids[-MAX_OPENING_TOKENS:]).rstrip()
    return opening if end.endswith(opening) else ""
