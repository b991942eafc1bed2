"""How /v1/chat/completions says things: `ReplyShape` of conversations."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from gateway.answer import AnswerDelta
from gateway.completions import FinishedChoice
from gateway.logprobs import ToldToken, chat_logprobs
from gateway.protocol.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Chunk,
    ChunkChoice,
    Delta,
    FinishReasonName,
    MaybeUsage,
    Reply,
    Usage,
)


@dataclass(frozen=True, slots=True)
class ChatShape:
    """/v1/chat/completions."""

    model: str
    no_usage: MaybeUsage = UNSET
    """What chunks before the usage say about it: null when it will come, else nothing."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, num_choices: int) -> Sequence[Chunk]:
        return [self._chunk(index, Delta(role="assistant", content="")) for index in range(num_choices)]

    def delta(self, index: int, delta: AnswerDelta, tokens: Sequence[ToldToken] = ()) -> Chunk:
        return self._chunk(index, Delta(content=delta.content), tokens)

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[ToldToken] = ()) -> Chunk:
        return self._chunk(index, Delta(), tokens, reason)

    def usage(self, usage: Usage) -> Chunk:
        return ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=(), usage=usage)

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply:
        made = tuple(
            ChatChoice(
                index=one.index,
                message=AssistantMessage(content=one.answer.content),
                logprobs=chat_logprobs(one.tokens),
                finish_reason=one.finish_reason,
            )
            for one in choices
        )
        return ChatCompletion(id=self.id, created=self.created, model=self.model, choices=made, usage=usage)

    def _chunk(
        self,
        index: int,
        delta: Delta,
        tokens: Sequence[ToldToken] = (),
        reason: FinishReasonName | None = None,
    ) -> Chunk:
        choice = ChunkChoice(index=index, delta=delta, logprobs=chat_logprobs(tokens), finish_reason=reason)
        return ChatCompletionChunk(
            id=self.id, created=self.created, model=self.model, choices=(choice,), usage=self.no_usage
        )
