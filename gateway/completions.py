"""From the outputs of sequences to OpenAI's objects: whole replies, or chunks.

Both are built from the same output stream, so a streamed answer says what the unstreamed one says. Knows neither HTTP
nor workers. A `ReplyShape` is what completions and chat completions differ in.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from msgspec import UNSET

from gateway.logprobs import GeneratedToken, TokenTrail, chat_logprobs, text_logprobs
from gateway.output_stream import OutputStream
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
    PromptTokensDetails,
    Reply,
    TextChoice,
    TextCompletion,
    Usage,
)
from model_registry import contract
from model_registry.contract import FinishReason, SequenceOutput


@dataclass(frozen=True, slots=True)
class FinishedChoice:
    index: int
    text: str
    finish_reason: FinishReasonName
    tokens: Sequence[GeneratedToken] = ()
    """Every one, where the request wants logprobs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a reply's choices come from sequences: those of the first prompt first."""

    num_prompts: int = 1
    num_sampled: int = 1
    """Sequences of each prompt."""
    num_choices: int = 1
    """Of them, those that are shown: the likeliest ones where they are fewer."""

    @property
    def num_sequences(self) -> int:
        return self.num_prompts * self.num_sampled

    def choose(self, finished: Sequence[FinishedChoice]) -> Sequence[FinishedChoice]:
        """The choices of all sequences, in order."""
        if self.num_choices == self.num_sampled:
            return finished
        groups = [finished[start : start + self.num_sampled] for start in range(0, len(finished), self.num_sampled)]
        best = (sorted(group, key=_mean_logprob, reverse=True)[: self.num_choices] for group in groups)
        return [replace(one, index=index) for index, one in enumerate(one for group in best for one in group)]


def _mean_logprob(choice: FinishedChoice) -> float:
    """OpenAI's measure of the best: the log probability per token."""
    logprobs = [token.logprobs.chosen.logprob for token in choice.tokens]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


class ReplyShape(Protocol):
    """How one endpoint says things. One per request: it carries the reply's id and time."""

    def opening(self, num_choices: int) -> Sequence[Chunk]:
        """Sent before any text, so that clients see the choices in the order of their indexes."""

    def text(self, index: int, text: str, tokens: Sequence[GeneratedToken] = ()) -> Chunk:
        """More text, and the tokens that were generated since the last chunk."""

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[GeneratedToken] = ()) -> Chunk:
        """The end, and the tokens that came with it but show no text: those of the stop, the end of sequence."""

    def usage(self, usage: Usage) -> Chunk: ...

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply: ...


class Completion:
    """One reply being made from one output stream: read it either by `chunks` or by `whole`."""

    def __init__(self, stream: OutputStream, shape: ReplyShape, layout: Layout, *, usage_chunk: bool) -> None:
        self.stream = stream
        self.finish_reason: FinishReason | None = None
        """Of the first choice, once it ended."""
        self._shape = shape
        self._layout = layout
        self._usage_chunk = usage_chunk
        self._usages: dict[int, contract.Usage] = {}
        self._trails = [TokenTrail() for _ in range(layout.num_sequences)]

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """OpenAI's chunks in order, of a layout that shows all sequences. Raises `ApiError` where the stream does."""
        await self.stream.started()
        for chunk in self._shape.opening(self._layout.num_sequences):
            yield chunk
        async for index, output in self.stream:
            self._note(index, output)
            if output.text:
                yield self._shape.text(index, output.text, self._trails[index].take())
            if output.finish_reason is not None:
                yield self._shape.finish(index, output.finish_reason.value, self._trails[index].take())
        if self._usage_chunk:
            yield self._shape.usage(self._total_usage())

    async def whole(self) -> Reply:
        """The reply as one object. Raises `ApiError` where the stream does."""
        outputs: dict[int, SequenceOutput] = {}
        async for index, output in self.stream:
            self._note(index, output)
            earlier = outputs.get(index)
            outputs[index] = output if earlier is None else earlier.followed_by(output)
        finished = [
            FinishedChoice(index, output.text, output.finish_reason.value, self._trails[index].take())
            for index, output in sorted(outputs.items())
            if output.finish_reason is not None
        ]
        return self._shape.whole(self._layout.choose(finished), self._total_usage())

    def _note(self, index: int, output: SequenceOutput) -> None:
        self._trails[index].add(output.logprobs)
        if output.usage is not None:
            self._usages[index] = output.usage
        if index == 0 and output.finish_reason is not None:
            self.finish_reason = output.finish_reason

    def _total_usage(self) -> Usage:
        """Each prompt counts once, however many sequences were made from it; all that was generated counts."""
        firsts = [self._usages[index] for index in range(0, self._layout.num_sequences, self._layout.num_sampled)]
        prompt = sum(usage.prompt_tokens for usage in firsts)
        generated = sum(usage.completion_tokens for usage in self._usages.values())
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=generated,
            total_tokens=prompt + generated,
            prompt_tokens_details=PromptTokensDetails(sum(usage.cached_tokens for usage in firsts)),
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
        return [self.text(index, "") for index in range(num_choices)] if num_choices > 1 else []

    def text(self, index: int, text: str, tokens: Sequence[GeneratedToken] = ()) -> Chunk:
        return self._chunk(TextChoice(index=index, text=text, logprobs=text_logprobs(tokens)))

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[GeneratedToken] = ()) -> Chunk:
        return self._chunk(TextChoice(index=index, text="", logprobs=text_logprobs(tokens), finish_reason=reason))

    def usage(self, usage: Usage) -> Chunk:
        return TextCompletion(id=self.id, created=self.created, model=self.model, choices=(), usage=usage)

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply:
        made = tuple(
            TextChoice(
                index=one.index,
                text=one.text,
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

    def text(self, index: int, text: str, tokens: Sequence[GeneratedToken] = ()) -> Chunk:
        return self._chunk(index, Delta(content=text), tokens)

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[GeneratedToken] = ()) -> Chunk:
        return self._chunk(index, Delta(), tokens, reason)

    def usage(self, usage: Usage) -> Chunk:
        return ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=(), usage=usage)

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply:
        made = tuple(
            ChatChoice(
                index=one.index,
                message=AssistantMessage(content=one.text),
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
        tokens: Sequence[GeneratedToken] = (),
        reason: FinishReasonName | None = None,
    ) -> Chunk:
        choice = ChunkChoice(index=index, delta=delta, logprobs=chat_logprobs(tokens), finish_reason=reason)
        return ChatCompletionChunk(
            id=self.id, created=self.created, model=self.model, choices=(choice,), usage=self.no_usage
        )
