"""From the workers' logprobs to OpenAI's two shapes of them.

There is one entry per token: of an echoed prompt as the model read it, then of each generated one as
`completion_tokens` counts them: also of a stop that the text does not show and of the end of sequence, as vLLM has it,
so that what ended a text can be judged like the rest. Pure; used by `completions`.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.protocol.responses import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob
from model_registry.contract import Candidate, PromptEcho, TokenLogprobs

MIN_LOGPROB: Final = -9999.0
"""What OpenAI says of tokens that cannot be; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class ToldToken:
    logprobs: TokenLogprobs
    text_offset: int
    """Characters of the choice's text that are complete before this token."""
    is_prompt: bool = False
    """Of an echoed prompt, not generated."""
    has_logprobs: bool = True
    """False for the first token of all: nothing that comes before it says how likely it was."""


class TokenTrail:
    """The tokens of one choice since they were last told."""

    def __init__(self) -> None:
        self._untold: list[ToldToken] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def add(self, tokens: Sequence[TokenLogprobs]) -> None:
        for token in tokens:
            self._untold.append(ToldToken(token, self._num_chars))
            self._pass(token)

    def add_prompt(self, prompt: PromptEcho) -> None:
        """What the text begins with, before anything was added."""
        for position, token in enumerate(prompt.logprobs):
            self._untold.append(ToldToken(token, self._num_chars, is_prompt=True, has_logprobs=position > 0))
            self._pass(token)
        # A prompt may spell special tokens out, and those that open it are in no text.
        self._num_chars = len(prompt.text)
        self._decoder.reset()

    def _pass(self, token: TokenLogprobs) -> None:
        if not token.chosen.is_special:
            self._num_chars += len(self._decoder.decode(token.chosen.text))

    def take(self) -> Sequence[ToldToken]:
        """Each token is handed out once."""
        taken, self._untold = self._untold, []
        return taken


def chat_logprobs(tokens: Sequence[ToldToken]) -> ChatLogprobs | None:
    """None without tokens: nobody asked, or there are none in this chunk."""
    return ChatLogprobs(content=tuple(_chat_token(token.logprobs) for token in tokens)) if tokens else None


def text_logprobs(tokens: Sequence[ToldToken]) -> TextLogprobs | None:
    """None without tokens: nobody asked, or there are none in this chunk."""
    if not tokens:
        return None
    chosen = [token.logprobs.chosen for token in tokens]
    return TextLogprobs(
        tokens=tuple(_text_name(one) for one in chosen),
        token_logprobs=tuple(_logprob(token.logprobs.chosen) if token.has_logprobs else None for token in tokens),
        top_logprobs=tuple(_by_name(token.logprobs) if token.has_logprobs else None for token in tokens),
        text_offset=tuple(token.text_offset for token in tokens),
    )


def _chat_token(token: TokenLogprobs) -> TokenLogprob:
    chosen = token.chosen
    return TokenLogprob(
        token=_chat_name(chosen),
        logprob=_logprob(chosen),
        bytes=_bytes(chosen),
        top_logprobs=tuple(
            TopLogprob(token=_chat_name(one), logprob=_logprob(one), bytes=_bytes(one)) for one in token.top
        ),
    )


def _by_name(token: TokenLogprobs) -> dict[str, float]:
    """The likeliest tokens, and the chosen one in any case; of two with the same text the likelier."""
    names: dict[str, float] = {}
    for one in (*token.top, token.chosen):
        names.setdefault(_text_name(one), _logprob(one))
    return names


def _chat_name(one: Candidate) -> str:
    r"""Its text; a byte that is only part of a character as `\xf0`."""
    return one.text.decode(errors="backslashreplace")


def _text_name(one: Candidate) -> str:
    r"""The same, after `bytes:` when it is not whole characters: in this shape nothing else tells."""
    try:
        return one.text.decode()
    except UnicodeDecodeError:
        return f"bytes:{_chat_name(one)}"


def _bytes(one: Candidate) -> tuple[int, ...] | None:
    """None for a special token: its name is in no text."""
    return None if one.is_special else tuple(one.text)


def _logprob(one: Candidate) -> float:
    return max(one.logprob, MIN_LOGPROB)
