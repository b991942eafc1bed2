"""Everything that crosses the process border between gateway and workers.

Plain frozen data (msgspec structs: tagged unions, fast on the wire, picklable by Ray) and the one pair of
encoders. No behaviour beyond reading one's own fields; no HTTP, no torch, no Ray. Both sides import this module,
neither imports the other.

Down the channel go `Command`s, up come `Frame`s: one frame per engine step, holding that step's output of every
sequence of the channel. Every submitted request gets exactly one final `SequenceOutput`, unless it was aborted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from model_registry.schema import RegistryEntry
from model_registry.tool_formats import AnswerFormat

CONTRACT_VERSION: Final = "4"
"""Changes when a struct below changes incompatibly, or asks for what an older side would silently leave out; a worker
refuses a gateway that speaks another version."""

CHANNEL_METHOD: Final = "/aviary.Worker/Connect"
SECRET_METADATA: Final = "x-aviary-secret"  # noqa: S105  (a header name, not a secret)
VERSION_METADATA: Final = "x-aviary-contract"

POOL_NAMESPACE: Final = "aviary"
MANAGER_NAME: Final = "aviary-manager"


class FinishReason(StrEnum):
    """Why a sequence ended by itself; values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"


class FaultKind(StrEnum):
    """Why a request ended without finishing."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_REQUEST = "invalid_request"
    WORKER_FULL = "worker_full"
    WORKER_DRAINING = "worker_draining"
    ENGINE_FAULT = "engine_fault"
    WORKER_LOST = "worker_lost"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A typed failure of one request. `message` may be shown to the client; `param` names the request field."""

    kind: FaultKind
    message: str
    param: str | None = None


class RequestFaultError(Exception):
    """Raised where one request cannot go on; carries the `Fault` that its client will see."""

    def __init__(self, kind: FaultKind, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.fault = Fault(kind=kind, message=message, param=param)


class TextSegment(msgspec.Struct, frozen=True):
    """Part of a rendered prompt. In text a client wrote (`trusted=False`) special tokens are text, not control."""

    text: str
    trusted: bool


class TextPrompt(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """A prompt already in its final form; segments are concatenated."""

    segments: tuple[TextSegment, ...]
    has_opening: bool = True
    """It begins with what the model puts before any text, such as a BOS token."""
    has_closing: bool = False
    """It ends with what the model puts after a whole text, such as a separator."""

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


class InfillPrompt(msgspec.Struct, frozen=True, tag="infill"):
    """A text whose middle is to be generated, for models that were trained to."""

    beginning: str
    end: str


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    """A prompt given as token ids; the worker checks them against its vocabulary."""

    token_ids: tuple[int, ...]


class ToolCall(msgspec.Struct, frozen=True):
    """What an assistant's message asks to be done."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant."""
    tool_call_id: str = ""
    """Of a tool: which call this answers."""
    name: str = ""
    """Of a tool: the function that was called; of others: who said it, if a client told."""


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat", omit_defaults=True):
    """A conversation that the worker renders with the model's own chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """What the model may call, in OpenAI's words: `{"type": "function", "function": {…}}`."""
    template_kwargs: dict[str, Any] = {}
    """Further variables of the template, such as `enable_thinking`."""
    continues_final_message: bool = False
    """The answer goes on with the last message, an assistant's, instead of opening one of its own."""
    opens_answer: bool = True
    """It ends with what opens the answer. Only a conversation that is not answered may do without."""


Prompt = TextPrompt | InfillPrompt | TokenPrompt | ChatPrompt


JSON_WHITESPACE: Final = r"[ \t\n\r]{1,32}"
"""Between the parts of a JSON text that is constrained. Without a bound, a small model goes on with spaces until its
last token."""


class ConstraintKind(StrEnum):
    """How a `Constraint` says what is allowed."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    """A context-free grammar as llguidance's variant of Lark has it, or llama.cpp's GBNF."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole generated text must be."""

    kind: ConstraintKind
    source: str
    """A JSON schema as JSON text, a regular expression, or a grammar."""
    param: str
    """The request field that asked for it, named in errors about it."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence is generated and when it ends; already merged and range-checked by the gateway."""

    max_tokens: int | None = None
    """Generated tokens at most; None: up to the model's context length. 0: nothing but an `echo`."""
    max_tokens_is_default: bool = False
    """The limit is the model's default, not the client's wish: where the context has less room, that is enough."""
    min_tokens: int = 0
    """No end of sequence and no stop before this many generated tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int | None = None
    """Sample among the k likeliest tokens only; None: among all."""
    min_p: float = 0.0
    """Sample only among tokens at least this share as likely as the likeliest, at the temperature."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these tokens, before penalties and temperature."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """Same seed, same request, same model: same text, whatever else is in the batch. None: fresh randomness."""
    num_logprobs: int | None = None
    """Of each generated token its logprob and so many likeliest others'; 0: its own only, None: no logprobs."""
    echo: bool = False
    """Tell what the prompt is, with the first output."""
    num_prompt_logprobs: int | None = None
    """The same of the prompt's tokens; only with `echo`."""
    constraint: Constraint | None = None
    shown_tokens: tuple[str, ...] = ()
    """Special tokens that stand in the text by their names, as a reader of the answer needs them; others are left out.
    Names that the vocabulary does not have are fine."""
    repeats_opening: str = ""
    """Where the prompt ends with this mark, the text begins with it: its reader need not know the prompt."""
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    """Strings matched on the generated text; never shown."""
    stop_token_ids: tuple[int, ...] = ()
    stop_token_sequences: tuple[tuple[int, ...], ...] = ()


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Go on with the prompt."""


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """Tell the prompt's tokens, as a generation would see them. No context is too short for that."""

    names_tokens: bool = False
    """Tell also how the vocabulary writes each of them."""


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """Tell the text of a prompt of token ids, special tokens by their names."""


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Make one vector of the prompt."""

    dimensions: int | None = None
    """Its first so many numbers only; None: all."""


Task = Generate | Tokenize | Detokenize | Embed
GENERATE: Final = Generate()
NOTHING: Final = SamplingParams(max_tokens=0)
"""The sampling of whatever is no generation."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to generate. A client's request with n choices is n of these.

    Or something else to do with one prompt, with `sampling` that generates nothing: whatever it is, it has one final
    output.
    """

    request_id: str
    """Made by the gateway, unique for the life of the cluster; never taken from a client."""
    prompt: Prompt
    sampling: SamplingParams
    task: Task = GENERATE


class SubmitBatch(msgspec.Struct, frozen=True, tag="submit"):
    requests: tuple[GenerationRequest, ...]


class AbortBatch(msgspec.Struct, frozen=True, tag="abort"):
    """Ids a worker does not know (any more) are fine: the request may have ended meanwhile."""

    request_ids: tuple[str, ...]


Command = SubmitBatch | AbortBatch


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""


class SequenceTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Where a sequence spent its time inside the worker, in seconds."""

    queue_s: float
    """From arrival to the first step that ran it."""
    prefill_s: float
    """From there to the first generated token."""
    decode_s: float
    """From there to the last token."""


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """A token that was, or might have been, generated at one position."""

    token_id: int
    text: bytes
    """What it adds to a text, in UTF-8, perhaps part of a character only; the name of a special token, which adds
    nothing."""
    is_special: bool
    logprob: float
    """Log-softmax of the model's raw logits in float32: before penalties, temperature and everything else that
    `SamplingParams` do to them."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """How likely one generated token was, and what else was."""

    chosen: Candidate
    top: tuple[Candidate, ...] = ()
    """The likeliest tokens, likeliest first, equally likely ones by id; the chosen one only if it is among them."""


class PromptEcho(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt as the model read it."""

    text: str
    """As it was given; of token ids, what they say, without special tokens."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each token, where they were asked for; the first one's is 0, since nothing comes before it."""


class Tokenized(msgspec.Struct, frozen=True, array_like=True):
    """What a prompt is made of."""

    token_ids: tuple[int, ...]
    names: tuple[str, ...] | None = None
    """Of each, as the vocabulary writes it; when they were asked for."""


class SequenceOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one sequence gained since its last output. Final when it has a finish_reason or a fault."""

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    """Every generated token, also those whose text is held back or cut by a stop."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of `token_ids`, when they were asked for."""
    prompt: PromptEcho | None = None
    """With the first output, where it was asked for."""
    tokenized: Tokenized | None = None
    """Of a `Tokenize`."""
    embedding: bytes = b""
    """Of an `Embed`: its numbers in float32, little-endian."""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    """The string of `SamplingParams.stop` that ended it, if one did."""
    usage: Usage | None = None
    """Set on the final output of whatever the model computed."""
    timing: SequenceTiming | None = None
    fault: Fault | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.fault is not None

    def followed_by(self, later: SequenceOutput) -> SequenceOutput:
        """Both outputs as one: what a reader that fell behind gets instead of two."""
        return SequenceOutput(
            request_id=self.request_id,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            logprobs=self.logprobs + later.logprobs,
            prompt=self.prompt or later.prompt,
            tokenized=later.tokenized,
            embedding=later.embedding,
            finish_reason=later.finish_reason,
            stop=later.stop,
            usage=later.usage,
            timing=later.timing,
            fault=later.fault,
        )


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's load at one moment; counters since its start."""

    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    step_batch_size: int = 0
    """Sequences in the last step."""
    kv_cache_usage: float = 0.0
    """Share of KV blocks held by sequences, 0 to 1."""
    num_preemptions: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One engine step as one channel sees it; an idle worker sends frames without outputs as a sign of life."""

    outputs: tuple[SequenceOutput, ...] = ()
    status: WorkerStatus


class ReplicaState(StrEnum):
    """Life of a replica: pending → starting → ready → draining → gone, or failed → (back-off) → pending."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    replica_id: str
    state: ReplicaState
    detail: str = ""
    """What it waits for, is doing, or why it failed; one line for people."""
    address: str | None = None
    """`host:port` of its channel once ready."""
    refusal: str = ""
    """Why it serves with earlier sizes than its registry file wants; empty when it does not."""
    fetched_bytes: int = 0
    """Bytes of weights it has fetched, from wherever, since its process started."""


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One deployed model as gateways need it."""

    entry: RegistryEntry
    created: int
    """Unix seconds of its first deployment."""
    replicas: tuple[ReplicaView, ...] = ()
    max_model_len: int | None = None
    """Context length in tokens, known once a replica has loaded."""
    answer_format: AnswerFormat | None = None
    """As its chat template shows it, known once a replica has loaded."""
    num_wanted: int = 1
    """Replicas there should be now; 0: the model sleeps until a request comes."""
    num_outdated: int = 0
    """Replicas that serve as the file wanted it earlier: what replaces them does not serve yet, or they have not taken
    over its new settings and sizes."""
    may_wait: bool = False
    """While no replica serves, requests may wait for one instead of being refused."""

    @property
    def model_id(self) -> str:
        return self.entry.model_id


LoadSeries = tuple[tuple[float, float], ...]
"""(unix time, value) of each moment that was looked at, oldest first; a value holds until the next."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway had to do for one model, over the look-back period of its autoscaling."""

    gateway_id: str
    model_id: str
    at: float
    """The gateway's `time.time()` when it was made: of two reports of one gateway, the later counts."""
    queued: LoadSeries = ()
    """Requests that wait in the gateway."""
    running: dict[str, LoadSeries] = {}
    """By replica id: requests sent to it that have not ended."""
    queued_tokens: LoadSeries = ()
    """Tokens of those that wait, prompt and answer, as the gateway estimates them."""
    running_tokens: dict[str, LoadSeries] = {}
    """By replica id: tokens of those that run, the prompt's as estimated and the answer's so far."""
    kv_cache_usage: dict[str, LoadSeries] = {}
    """By replica id: what it said last, from 0 to 1. Every gateway hears the same."""


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a gateway knows about the pool; `version` grows with every change."""

    version: int
    secret: str
    models: tuple[ModelView, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_frame_decoder = msgspec.msgpack.Decoder(Frame)


def encode_command(command: Command) -> bytes:
    return _encoder.encode(command)


def decode_command(data: bytes) -> Command:
    """Raises `msgspec.ValidationError` when the bytes are not a command of this contract version."""
    return _command_decoder.decode(data)


def encode_frame(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def decode_frame(data: bytes) -> Frame:
    """Raises `msgspec.ValidationError` when the bytes are not a frame of this contract version."""
    return _frame_decoder.decode(data)
