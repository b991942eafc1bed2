"""How /v1/completions says things: `ReplyShape` of texts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from gateway.answer import AnswerDelta
from gateway.completions import FinishedChoice
from gateway.logprobs import ToldToken, text_logprobs
from gateway.protocol.responses import (
    Chunk,
    FinishReasonName,
    MaybeUsage,
    Reply,
    TextChoice,
    TextCompletion,
    Usage,
)


@dataclass(frozen=True, slots=True)
class TextShape:
    """/v1/completions."""

    model: str
    no_usage: MaybeUsage = UNSET
    """What chunks before the usage say about it: null when it will come, else nothing."""
    shows_logprobs: bool = True
    """False where the tokens' logprobs were only wanted for a choice among sequences."""
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, num_choices: int) -> Sequence[Chunk]:
        return [self.delta(index, AnswerDelta()) for index in range(num_choices)] if num_choices > 1 else []

    def delta(self, index: int, delta: AnswerDelta, tokens: Sequence[ToldToken] = ()) -> Chunk:
        return self._chunk(TextChoice(index=index, text=delta.content, logprobs=text_logprobs(tokens)))

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[ToldToken] = ()) -> Chunk:
        return self._chunk(TextChoice(index=index, text="", logprobs=text_logprobs(tokens), finish_reason=reason))

    def usage(self, usage: Usage) -> Chunk:
        return TextCompletion(id=self.id, created=self.created, model=self.model, choices=(), usage=usage)

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply:
        made = tuple(
            TextChoice(
                index=one.index,
                text=one.answer.content,
                logprobs=text_logprobs(one.tokens) if self.shows_logprobs else None,
                finish_reason=one.finish_reason,
            )
            for one in choices
        )
        return TextCompletion(id=self.id, created=self.created, model=self.model, choices=made, usage=usage)

    def _chunk(self, choice: TextChoice) -> TextCompletion:
        return TextCompletion(
            id=self.id, created=self.created, model=self.model, choices=(choice,), usage=self.no_usage
        )
