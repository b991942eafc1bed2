"""How /v1/chat/completions says things: `ReplyShape` of conversations."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from gateway import answer
from gateway.answer import Answer, AnswerDelta
from gateway.completions import FinishedChoice
from gateway.logprobs import ToldToken, chat_logprobs
from gateway.protocol.responses import (
    AssistantMessage,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Chunk,
    ChunkChoice,
    Delta,
    FinishReasonName,
    FunctionDelta,
    MaybeUsage,
    MessageToolCall,
    Reply,
    ToolCallDelta,
    Usage,
)


@dataclass(frozen=True, slots=True)
class ChatShape:
    """/v1/chat/completions."""

    model: str
    no_usage: MaybeUsage = UNSET
    """What chunks before the usage say about it: null when it will come, else nothing."""
    may_call: bool = False
    """The answer may have calls beside its content, or in its place."""
    calls_are_named: bool = False
    """The request named the function, so that a call is a plain end, as OpenAI has it."""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, num_choices: int) -> Sequence[Chunk]:
        content = None if self.may_call else ""
        return [self._chunk(index, Delta(role="assistant", content=content)) for index in range(num_choices)]

    def delta(self, index: int, delta: AnswerDelta, tokens: Sequence[ToldToken] = ()) -> Chunk:
        said = Delta(
            content=delta.content or UNSET,
            tool_calls=tuple(map(_call_delta, delta.tool_calls)) or UNSET,
            reasoning=delta.reasoning or UNSET,
            reasoning_content=delta.reasoning or UNSET,
        )
        return self._chunk(index, said, tokens)

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[ToldToken] = ()) -> Chunk:
        return self._chunk(index, Delta(), tokens, self._told(reason))

    def usage(self, usage: Usage) -> Chunk:
        return ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=(), usage=usage)

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply:
        made = tuple(
            ChatChoice(
                index=one.index,
                message=_message(one.answer),
                logprobs=chat_logprobs(one.tokens),
                finish_reason=self._told(one.finish_reason),
            )
            for one in choices
        )
        return ChatCompletion(id=self.id, created=self.created, model=self.model, choices=made, usage=usage)

    def _told(self, reason: FinishReasonName) -> FinishReasonName:
        return "stop" if self.calls_are_named and reason == "tool_calls" else reason

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


def _message(said: Answer) -> AssistantMessage:
    calls = tuple(
        MessageToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in said.tool_calls
    )
    return AssistantMessage(
        content=None if calls and not said.content else said.content,
        tool_calls=calls or UNSET,
        reasoning=said.reasoning or UNSET,
        reasoning_content=said.reasoning or UNSET,
    )


def _call_delta(delta: answer.ToolCallDelta) -> ToolCallDelta:
    is_first = bool(delta.id)
    return ToolCallDelta(
        index=delta.index,
        id=delta.id if is_first else UNSET,
        type="function" if is_first else UNSET,
        function=FunctionDelta(name=delta.name if is_first else UNSET, arguments=delta.arguments),
    )
