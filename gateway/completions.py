"""From the outputs of sequences to OpenAI's objects: whole replies, or chunks.

Both are built from the same output stream, so a streamed answer says what the unstreamed one says. Knows neither HTTP
nor workers. A `ReplyShape` is what completions and chat completions differ in.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.answer import Answer, AnswerDelta, AnswerReader, PlainReader
from gateway.framing import CHUNK_EVENTS
from gateway.logprobs import TokenTrail, ToldToken
from gateway.output_stream import OutputStream
from gateway.protocol.responses import Chunk, FinishReasonName, PromptTokensDetails, Reply, Usage
from model_registry import contract
from model_registry.contract import FinishReason, SequenceOutput


@dataclass(frozen=True, slots=True)
class FinishedChoice:
    index: int
    answer: Answer
    finish_reason: FinishReasonName
    tokens: Sequence[ToldToken] = ()
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
    logprobs = [token.logprobs.chosen.logprob for token in choice.tokens if not token.is_prompt]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


class ReplyShape(Protocol):
    """How one endpoint says things. One per request: it carries the reply's id and time."""

    def opening(self, num_choices: int) -> Sequence[Chunk]:
        """Sent before any text, so that clients see the choices in the order of their indexes."""

    def delta(self, index: int, delta: AnswerDelta, tokens: Sequence[ToldToken] = ()) -> Chunk:
        """More of the answer, and the tokens that were generated since the last chunk."""

    def finish(self, index: int, reason: FinishReasonName, tokens: Sequence[ToldToken] = ()) -> Chunk:
        """The end, and the tokens that came with it but show no text: those of the stop, the end of sequence."""

    def usage(self, usage: Usage) -> Chunk: ...

    def whole(self, choices: Sequence[FinishedChoice], usage: Usage) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """What one output adds to one sequence's answer."""

    index: int
    delta: AnswerDelta
    finish_reason: FinishReasonName | None
    """Of the last one."""


class Answering:
    """Reads the answers of a request's sequences while they come; what makes a reply of them is built on it."""

    def __init__(self, stream: OutputStream, layout: Layout, new_reader: Callable[[], AnswerReader]) -> None:
        """`new_reader` makes what finds the parts of one sequence's answer."""
        self.stream = stream
        self.finish_reason: FinishReason | None = None
        """Of the first choice, once it ended."""
        self._layout = layout
        self._usages: dict[int, contract.Usage] = {}
        self._trails = [TokenTrail() for _ in range(layout.num_sequences)]
        self._readers = [new_reader() for _ in range(layout.num_sequences)]

    async def _progress(self) -> AsyncGenerator[Progress, None]:
        """To be read once. Raises `ApiError` where the stream does."""
        async for index, output in self.stream:
            if output.prompt is not None:
                self._trails[index].add_prompt(output.prompt)
                yield Progress(index, AnswerDelta(output.prompt.text), None)
            self._note(index, output)
            delta = self._read(index, output)  # first, since it may hold the call that is the reason
            reason = None if output.finish_reason is None else self._finish_reason(index, output.finish_reason)
            yield Progress(index, delta, reason)

    def _take_tokens(self, index: int) -> Sequence[ToldToken]:
        """The sequence's tokens since this was asked last."""
        return self._trails[index].take()

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

    def _read(self, index: int, output: SequenceOutput) -> AnswerDelta:
        """What the output adds to the answer."""
        delta = self._readers[index].feed(output.text) if output.text else AnswerDelta()
        return delta if output.finish_reason is None else delta + self._readers[index].finish()

    def _finish_reason(self, index: int, reason: FinishReason) -> FinishReasonName:
        if reason is FinishReason.STOP and self._readers[index].has_tool_calls:
            return "tool_calls"
        return reason.value

    def _note(self, index: int, output: SequenceOutput) -> None:
        self._trails[index].add(output.logprobs)
        if output.usage is not None:
            self._usages[index] = output.usage
        if index == 0 and output.finish_reason is not None:
            self.finish_reason = output.finish_reason


class Completion(Answering):
    """One reply being made from one output stream: read it either by `chunks` or by `whole`."""

    framing = CHUNK_EVENTS

    def __init__(
        self,
        stream: OutputStream,
        shape: ReplyShape,
        layout: Layout,
        *,
        usage_chunk: bool,
        new_reader: Callable[[], AnswerReader] = PlainReader,
    ) -> None:
        super().__init__(stream, layout, new_reader)
        self._shape = shape
        self._usage_chunk = usage_chunk

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """OpenAI's chunks in order, of a layout that shows all sequences. Raises `ApiError` where the stream does."""
        await self.stream.started()
        for chunk in self._shape.opening(self._layout.num_sequences):
            yield chunk
        async for more in self._progress():
            if more.delta:
                yield self._shape.delta(more.index, more.delta, self._take_tokens(more.index))
            if more.finish_reason is not None:
                yield self._shape.finish(more.index, more.finish_reason, self._take_tokens(more.index))
        if self._usage_chunk:
            yield self._shape.usage(self._total_usage())

    async def whole(self) -> Reply:
        """The reply as one object. Raises `ApiError` where the stream does."""
        answers = [Answer() for _ in self._readers]
        finished: dict[int, FinishedChoice] = {}
        async for more in self._progress():
            index = more.index
            answers[index] += more.delta
            if more.finish_reason is not None:
                tokens = self._take_tokens(index)
                finished[index] = FinishedChoice(index, answers[index], more.finish_reason, tokens)
        choices = self._layout.choose([finished[index] for index in sorted(finished)])
        return self._shape.whole(choices, self._total_usage())
