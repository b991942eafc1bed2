"""OpenAI's reply objects: what is sent, field by field, in OpenAI's order.

Plain msgspec structs without behaviour, encoded by `encode`. A field that is UNSET is not sent; one that is None is
sent as null. Built by `completions` and `routes.models`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReasonName = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


MaybeUsage = Usage | None | UnsetType


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a reply went, in seconds; of several choices, by the first."""

    queue_s: float
    """From the request to the step that began with its prompt: the waiting, here and at the worker."""
    time_to_first_token_s: float
    """From the request to the first output."""
    generation_s: float
    """From there to the last."""


class TextLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of a completion's tokens, a list of each thing."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    """Null for the very first token of an echoed prompt, as below."""
    top_logprobs: tuple[dict[str, float] | None, ...]
    text_offset: tuple[int, ...]


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A choice of a completion, and of its chunks."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReasonName | None = None


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A completion, and each of its chunks."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: MaybeUsage = UNSET
    timing: Timing | UnsetType = UNSET
    """Of a whole reply, or with the last choice's end."""


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None
    top_logprobs: tuple[TopLogprob, ...]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: tuple[TokenLogprob, ...]
    refusal: None = None


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: str


class MessageToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """None where there are calls and nothing is said beside them."""
    refusal: None = None
    tool_calls: tuple[MessageToolCall, ...] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    """The same by its other name."""


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReasonName


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    timing: Timing | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """`id`, `type` and `name` come once: clients put what comes again behind it."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: tuple[ToolCallDelta, ...] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReasonName | None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: MaybeUsage = UNSET
    timing: Timing | UnsetType = UNSET
    """With the last choice's end."""


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model, with what an operator or a client wants to know before using it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    description: str
    """What the registry says about it to people; may be empty."""
    state: str
    """State of its best replica, or `unavailable` when it has none."""
    reason: str | None
    """Why it cannot be used now; null when it can."""
    replicas: dict[str, int]
    """Number of replicas by state."""
    max_model_len: int | None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


Chunk = TextCompletion | ChatCompletionChunk
Reply = TextCompletion | ChatCompletion

encode = msgspec.json.Encoder().encode
