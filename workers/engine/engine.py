"""The engine: requests in, outputs out, one step at a time, many sequences together.

`step` is the whole request loop: schedule → run → sample → emit. Synchronous and single-threaded: `EngineLoop` calls
it. Knows no library and no hardware: the model behind it is a `ModelRunner`, a `Sampler` and a `Tokenizer`. A request's
fault stays its own: a step that fails is run again sequence by sequence, and only the one that fails alone ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import msgspec

from model_registry.contract import (
    Candidate,
    Detokenize,
    Embed,
    Fault,
    FaultKind,
    FinishReason,
    GenerationRequest,
    PromptEcho,
    RequestFaultError,
    SamplingParams,
    SequenceOutput,
    TextPrompt,
    Tokenize,
    TokenLogprobs,
    WorkerStatus,
)
from workers.engine.constraint import ConstraintCompiler
from workers.engine.embeddings import NO_FAULT_DETAILS, Embedder, EmbeddingQueue, Passage, PreparedEmbedding
from workers.engine.kv_cache import KVCache
from workers.engine.raw_logprobs import RawLogprobs
from workers.engine.runner import KVOperation, LogitsRows, ModelRunner, StepPlan
from workers.engine.sampler import SampledToken, Sampler
from workers.engine.scheduler import Scheduled, Scheduler
from workers.engine.sequence import Sequence
from workers.engine.text_stream import TextStream
from workers.engine.tokenization import detokenized, tokenized
from workers.engine.tokenizer import Tokenizer
from workers.errors import DeviceLostError, LoadError, first_line

logger = logging.getLogger(__name__)

NewKVCache = Callable[[], KVCache]
"""Makes sure that the runner has KV memory of a certain size, and makes the books of it, with nothing in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Of one step and of one sequence."""

    max_model_len: int
    """Prompt and generated tokens of one sequence at most."""
    max_batch_size: int
    max_batch_tokens: int
    max_input_tokens: int | None = None
    """Prompt tokens of one sequence at most; None: as many as fit."""
    max_logits_rows: int | None = None
    """Logits rows of one step at most; None: one for each of its tokens."""


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """What an engine can be given others of between two steps."""

    new_kv_cache: NewKVCache
    limits: EngineLimits
    """All but `max_input_tokens`, which `Engine.limit_input` changes."""


class Engine:
    """Continuous batching over one model."""

    def __init__(
        self,
        runner: ModelRunner,
        sampler: Sampler,
        tokenizer: Tokenizer,
        constraints: ConstraintCompiler,
        sizes: EngineSizes,
        embedder: Embedder | None = None,
        *,
        generates: bool = True,
    ) -> None:
        """The runner's KV memory, and the books of it, are this engine's alone. Without `generates` it never runs."""
        self._runner = runner
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._constraints = constraints
        self._sizes = sizes
        self._max_input_tokens = sizes.limits.max_input_tokens
        self._max_model_len = sizes.limits.max_model_len
        """What new requests are held to: less than the limit while a smaller one is awaited."""
        self._scheduler = Scheduler(_kv_cache_of(sizes), **_step_limits(sizes.limits))
        self._sequences: dict[str, Sequence] = {}
        self._embeddings = EmbeddingQueue(embedder)
        self._generates = generates
        self._num_steps = 0
        self._step_batch_size = 0
        self._prompt_tokens_total = 0
        self._cached_tokens_total = 0
        self._generated_tokens_total = 0

    @property
    def limits(self) -> EngineLimits:
        return replace(self._sizes.limits, max_input_tokens=self._max_input_tokens)

    def limit_input(self, max_input_tokens: int | None) -> None:
        """Another limit on the prompts of requests that are prepared from now on. Safe on any thread."""
        self._max_input_tokens = max_input_tokens

    def expect(self, limits: EngineLimits) -> None:
        """Hold requests that are prepared or submitted from now on also to limits that a `resize` will bring."""
        self._max_model_len = min(self._sizes.limits.max_model_len, limits.max_model_len)

    def fits(self, limits: EngineLimits) -> bool:
        """Whether every sequence could end as it was promised under these limits."""
        longest = (sequence.num_prompt_tokens + sequence.max_tokens for sequence in self._sequences.values())
        return max(longest, default=0) <= limits.max_model_len

    def resize(self, sizes: EngineSizes) -> None:
        """Go on with other KV memory and other limits; only when they `fit`.

        Sequences keep their tokens and are computed again. Raises `LoadError` when there is no such memory: the engine
        then goes on with what it had. Raises `DeviceLostError` when it has neither.
        """
        self._scheduler.preempt_all()
        try:
            self._use(sizes)
        except DeviceLostError:
            raise
        except Exception as error:
            # An edge: every library runs out of memory in its own way.
            self._restore()
            raise LoadError(first_line(error)) from error

    def _restore(self) -> None:
        """Take back the KV memory that was given away for another."""
        try:
            self._use(self._sizes)
        except Exception as error:
            raise DeviceLostError(f"the KV cache is gone, and there is no other: {first_line(error)}") from error

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._embeddings)

    def prepare(self, request: GenerationRequest) -> Sequence:
        """Tokenize and check a request. Safe on any thread: touches no engine state. Raises `RequestFaultError`."""
        if not self._generates:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                "This model makes embeddings and cannot generate text. Use it with /v1/embeddings, or another model.",
                "model",
            )
        prompt_token_ids = self._tokenizer.encode_prompt(request.prompt)
        if not prompt_token_ids:
            raise RequestFaultError(FaultKind.INVALID_REQUEST, "The prompt has no tokens.", "prompt")
        self._check_num_input_tokens(len(prompt_token_ids))
        self._check_token_ids(request.sampling)
        constraint = request.sampling.constraint
        shown = request.sampling.shown_tokens
        decode = self._tokenizer.decode_showing(shown) if shown else self._tokenizer.decode
        return Sequence(
            request=request,
            token_ids=prompt_token_ids,
            num_prompt_tokens=len(prompt_token_ids),
            max_tokens=self._max_tokens(request.sampling, len(prompt_token_ids)),
            end_token_ids=frozenset() if request.sampling.ignore_eos else self._tokenizer.eos_token_ids,
            text_stream=TextStream(decode, prompt_token_ids, request.sampling),
            constraint=None if constraint is None else self._constraints.compile(constraint),
        )

    def answer(self, request: GenerationRequest, task: Tokenize | Detokenize) -> SequenceOutput:
        """Do what takes the tokenizer only. Safe on any thread. Raises `RequestFaultError`."""
        if isinstance(task, Tokenize):
            return tokenized(request, task, self._tokenizer)
        return detokenized(request, self._tokenizer)

    def prepare_embedding(self, request: GenerationRequest, task: Embed) -> PreparedEmbedding:
        """As `prepare`, of a request that generates nothing, and so needs room for its prompt only."""
        num_dimensions = self._embeddings.wanted_dimensions(task.dimensions)
        token_ids = self._tokenizer.encode_prompt(request.prompt)
        if not token_ids:
            raise RequestFaultError(FaultKind.INVALID_REQUEST, "The input has no tokens.", "prompt")
        self._check_num_input_tokens(len(token_ids))
        if len(token_ids) > self._max_model_len:
            raise RequestFaultError(
                FaultKind.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {self._max_model_len} tokens. However, your input has "
                f"{len(token_ids)} tokens. Please reduce its length.",
                "prompt",
            )
        return PreparedEmbedding(request, Passage(token_ids, num_dimensions))

    def submit_embedding(self, prepared: PreparedEmbedding) -> None:
        """Queue a prepared request for an embedding. Raises `RequestFaultError` when its id is in use."""
        self._check_id(prepared.request_id)
        self._embeddings.add(prepared)

    def submit(self, sequence: Sequence) -> None:
        """Queue a prepared sequence. Raises `RequestFaultError` when its id is in use, or it no longer fits."""
        self._check_id(sequence.request_id)
        # It was prepared on a thread of its own; the limits may have changed since.
        sequence.max_tokens = self._max_tokens(sequence.request.sampling, sequence.num_prompt_tokens)
        self._sequences[sequence.request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ids are fine. Nothing more is emitted for it."""
        self._embeddings.remove(request_id)
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)

    def step(self) -> list[SequenceOutput]:
        """Run every scheduled sequence once, and one batch of embeddings; returns what each of them gained."""
        embedded = self._embeddings.run_batch(self._sizes.limits.max_batch_tokens)
        scheduled = self._scheduler.schedule()
        if not scheduled:
            self._num_steps += bool(embedded)
            return embedded
        sampled = self._run(scheduled, self._scheduler.take_kv_operations())
        self._num_steps += 1
        self._step_batch_size = len(scheduled)
        outputs = [self._emit(part, token) for part, token in zip(scheduled, sampled, strict=True)]
        return embedded + [output for output in outputs if output is not None]

    def status(self) -> WorkerStatus:
        return WorkerStatus(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + len(self._embeddings),
            num_steps=self._num_steps,
            step_batch_size=self._step_batch_size,
            kv_cache_usage=self._scheduler.kv_cache_usage,
            num_preemptions=self._scheduler.num_preemptions,
            prompt_tokens_total=self._prompt_tokens_total + self._embeddings.num_tokens_done,
            cached_tokens_total=self._cached_tokens_total,
            generated_tokens_total=self._generated_tokens_total,
        )

    def _use(self, sizes: EngineSizes) -> None:
        kv_cache = _kv_cache_of(sizes)
        self._sizes = sizes
        self._max_model_len = sizes.limits.max_model_len
        self._scheduler.resize(kv_cache, **_step_limits(sizes.limits))

    def _run(
        self, scheduled: list[Scheduled], kv_operations: Sequences[KVOperation] = ()
    ) -> list[SampledToken | Exception | None]:
        """One token per part that completes, None for the others, an exception for a part that failed by itself.

        Raises `DeviceLostError`, which ends the engine: nothing on a lost device can be blamed on one request.
        """
        try:
            rows = self._runner.run(StepPlan([part.chunk() for part in scheduled], kv_operations))
            ends = [*accumulate(part.num_logits for part in scheduled)]
            self._score_prompts(scheduled, ends, rows)
            return self._sample(scheduled, ends, rows)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a model raises must end one request at most
            if len(scheduled) == 1:
                return [error]
            logger.warning("a step of %d sequences failed, running them one by one: %s", len(scheduled), error)
            return [self._run([part])[0] for part in scheduled]

    def _score_prompts(self, scheduled: list[Scheduled], ends: list[int], rows: LogitsRows) -> None:
        """Note how likely the prompts' own tokens were, where somebody wants to know; `ends` of the parts' rows."""
        for part, end in zip(scheduled, ends, strict=True):
            sequence = part.sequence
            num_told, start = part.num_prompt_logits, end - part.num_logits
            num_logprobs = sequence.request.sampling.num_prompt_logprobs
            if num_told and num_logprobs is not None:
                told = sequence.num_prompt_tokens_told
                token_ids = sequence.token_ids[told : told + num_told]
                told_rows = rows[start : start + num_told]
                sequence.prompt_logprobs += self._sampler.logprobs(told_rows, token_ids, num_logprobs)

    def _sample(
        self, scheduled: list[Scheduled], ends: list[int], rows: LogitsRows
    ) -> list[SampledToken | Exception | None]:
        sequences = [part.sequence for part in scheduled if part.completes]
        at = [end - 1 for part, end in zip(scheduled, ends, strict=True) if part.completes]
        sampled = iter(self._sampler.sample(rows, sequences, at) if sequences else [])
        return [next(sampled) if part.completes else None for part in scheduled]

    def _emit(self, scheduled: Scheduled, sampled: SampledToken | Exception | None) -> SequenceOutput | None:
        """Note one part's result and turn it into output."""
        sequence = scheduled.sequence
        if isinstance(sampled, Exception):
            return self._fail(sequence, sampled)
        self._count_prefill(scheduled)
        self._scheduler.commit(scheduled)
        if sampled is None:
            return None
        prompt = self._echo(sequence) if sequence.first_token_at is None else None
        if sequence.max_tokens == 0:
            output = SequenceOutput(request_id=sequence.request_id, prompt=prompt)
            return self._finish(sequence, output, FinishReason.LENGTH)
        token = sampled.token_id
        try:
            sequence.append(token)
        except RequestFaultError as error:
            return self._fail(sequence, error)
        self._generated_tokens_total += 1
        text, finish_reason = self._advance_text(sequence, token)
        output = SequenceOutput(
            request_id=sequence.request_id,
            text=text,
            token_ids=(token,),
            logprobs=() if sampled.logprobs is None else (self._logprobs(token, sampled.logprobs),),
            prompt=prompt,
        )
        return output if finish_reason is None else self._finish(sequence, output, finish_reason)

    def _finish(self, sequence: Sequence, output: SequenceOutput, finish_reason: FinishReason) -> SequenceOutput:
        """Forget a sequence; returns its last output as the final one."""
        self.abort(sequence.request_id)
        return msgspec.structs.replace(
            output,
            finish_reason=finish_reason,
            stop=sequence.text_stream.stop,
            usage=sequence.usage(),
            timing=sequence.timing(),
        )

    def _echo(self, sequence: Sequence) -> PromptEcho | None:
        """What the prompt is and how likely its tokens were, as far as that was asked for."""
        if not sequence.request.sampling.echo:
            return None
        token_ids = sequence.token_ids[: sequence.num_prompt_tokens]
        logprobs: list[TokenLogprobs] = []
        if sequence.request.sampling.num_prompt_logprobs is not None:
            later = zip(token_ids[1:], sequence.prompt_logprobs, strict=True)
            logprobs = [TokenLogprobs(self._candidate(token_ids[0], 0.0)), *(self._logprobs(*pair) for pair in later)]
        prompt = sequence.request.prompt
        text = prompt.text if isinstance(prompt, TextPrompt) else self._tokenizer.decode(token_ids)
        return PromptEcho(text=text, logprobs=tuple(logprobs))

    def _advance_text(self, sequence: Sequence, token: int) -> tuple[str, FinishReason | None]:
        """The text that a new token makes certain, and whether it ends the sequence."""
        stream = sequence.text_stream
        if token in sequence.end_token_ids:
            text, _ = stream.flush()
            return text, FinishReason.STOP
        text, stopped = stream.feed(token)
        if stopped:
            return text, FinishReason.STOP
        if not sequence.is_complete and sequence.num_generated_tokens < sequence.max_tokens:
            return text, None
        rest, stopped = stream.flush()
        return text + rest, FinishReason.STOP if stopped or sequence.is_complete else FinishReason.LENGTH

    def _logprobs(self, token_id: int, logprobs: RawLogprobs) -> TokenLogprobs:
        """Those of one token with the tokens' own texts."""
        chosen = self._candidate(token_id, logprobs.chosen)
        return TokenLogprobs(chosen, tuple(self._candidate(*other) for other in logprobs.top))

    def _candidate(self, token_id: int, logprob: float) -> Candidate:
        piece = self._tokenizer.piece(token_id)
        return Candidate(token_id, piece.text, piece.is_special, logprob)

    def _fail(self, sequence: Sequence, error: Exception) -> SequenceOutput:
        self.abort(sequence.request_id)
        if isinstance(error, RequestFaultError):
            fault = error.fault
        else:
            logger.error("request %s failed in the model", sequence.request_id, exc_info=error)
            fault = Fault(kind=FaultKind.ENGINE_FAULT, message=NO_FAULT_DETAILS)
        return SequenceOutput(request_id=sequence.request_id, fault=fault, usage=sequence.usage())

    def _count_prefill(self, scheduled: Scheduled) -> None:
        """Prompt tokens count once: computed or from the cache, not again after a preemption."""
        sequence = scheduled.sequence
        if scheduled.completes and sequence.first_token_at is None:
            self._prompt_tokens_total += sequence.num_prompt_tokens
            self._cached_tokens_total += sequence.num_cached_tokens

    def _max_tokens(self, sampling: SamplingParams, num_prompt_tokens: int) -> int:
        """What a client asked for must fit; a default only fills the room there is."""
        max_model_len = self._max_model_len
        room = max_model_len - num_prompt_tokens
        wished = room if sampling.max_tokens is None else sampling.max_tokens
        asked = 1 if sampling.max_tokens is None or sampling.max_tokens_is_default else wished
        needed = max(asked, sampling.min_tokens)
        if needed > room:
            raise RequestFaultError(
                FaultKind.CONTEXT_LENGTH_EXCEEDED,
                f"This model's maximum context length is {max_model_len} tokens. However, you requested "
                f"{num_prompt_tokens + needed} tokens ({num_prompt_tokens} in the prompt, {needed} for the "
                "completion). Please reduce the length of the prompt or of the completion.",
                "prompt",
            )
        return min(wished, room)

    def _check_id(self, request_id: str) -> None:
        if request_id in self._sequences or request_id in self._embeddings:
            raise RequestFaultError(FaultKind.INVALID_REQUEST, "A request with this id is already running.")

    def _check_num_input_tokens(self, num_prompt_tokens: int) -> None:
        limit = self._max_input_tokens
        if limit is not None and num_prompt_tokens > limit:
            raise RequestFaultError(
                FaultKind.CONTEXT_LENGTH_EXCEEDED,
                f"This model accepts prompts of at most {limit} tokens. However, yours has {num_prompt_tokens} tokens. "
                "Please reduce the length of the prompt.",
                "prompt",
            )

    def _check_token_ids(self, sampling: SamplingParams) -> None:
        sequences = sampling.stop_token_sequences
        stops = (*sampling.stop_token_ids, *(token_id for ids in sequences for token_id in ids))
        for param, token_ids in (("stop_token_ids", stops), ("logit_bias", sampling.logit_bias)):
            for token_id in token_ids:
                if not 0 <= token_id < self._tokenizer.vocab_size:
                    raise RequestFaultError(
                        FaultKind.INVALID_REQUEST,
                        f"Invalid '{param}': token {token_id} is outside the model's vocabulary of "
                        f"{self._tokenizer.vocab_size} tokens.",
                        param,
                    )


def _step_limits(limits: EngineLimits) -> dict[str, Any]:
    """The arguments of a `Scheduler`."""
    return {
        "max_batch_size": limits.max_batch_size,
        "max_batch_tokens": limits.max_batch_tokens,
        "max_logits_rows": limits.max_logits_rows,
    }


def _kv_cache_of(sizes: EngineSizes) -> KVCache:
    kv_cache, max_model_len = sizes.new_kv_cache(), sizes.limits.max_model_len
    if max_model_len > kv_cache.capacity:
        raise ValueError(f"max_model_len {max_model_len} exceeds the KV cache of {kv_cache.capacity} tokens")
    return kv_cache
