"""What POST /v1/responses and its siblings send: the response, its items, and the events of its stream.

Plain msgspec structs without behaviour, in OpenAI's order, encoded by `responses.encode`. Built by `response_reply` and
`routes.responses`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.protocol.responses import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag="output_text", tag_field="type"):
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag="message", tag_field="type"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: tuple[OutputText, ...]


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning_text", tag_field="type"):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning", tag_field="type"):
    id: str
    status: ItemStatus
    summary: tuple[()] = ()
    content: tuple[ReasoningText, ...]


class FunctionCallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call", tag_field="type"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = ReasoningItem | OutputMessage | FunctionCallItem


class InputTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response at one moment of its life. Settings are told as they were asked for, or as they came to be."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus = "in_progress"
    background: Literal[False] = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: None = None
    model: str
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any]
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: tuple[dict[str, Any], ...] = ()
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}


class DeletedResponse(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[dict[str, Any], ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


# Events. A stream's numbers follow each other from 0.


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    sequence_number: int = 0
    """Set when it is sent."""

    @property
    def event_type(self) -> str:
        return str(self.__struct_config__.tag)


class _OfResponse(Event, frozen=True, kw_only=True):
    response: Response


class Created(_OfResponse, frozen=True, tag="response.created"):
    pass


class InProgress(_OfResponse, frozen=True, tag="response.in_progress"):
    pass


class Completed(_OfResponse, frozen=True, tag="response.completed"):
    pass


class Incomplete(_OfResponse, frozen=True, tag="response.incomplete"):
    pass


class Failed(_OfResponse, frozen=True, tag="response.failed"):
    pass


class _OfItem(Event, frozen=True, kw_only=True):
    output_index: int


class ItemAdded(_OfItem, frozen=True, kw_only=True, tag="response.output_item.added"):
    item: OutputItem


class ItemDone(_OfItem, frozen=True, kw_only=True, tag="response.output_item.done"):
    item: OutputItem


class _OfPart(_OfItem, frozen=True, kw_only=True):
    item_id: str
    content_index: int = 0


class PartAdded(_OfPart, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(_OfPart, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class TextDelta(_OfPart, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: tuple[TokenLogprob, ...] = ()


class TextDone(_OfPart, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(_OfPart, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(_OfPart, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class ArgumentsDelta(_OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    item_id: str
    delta: str


class ArgumentsDone(_OfItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    item_id: str
    name: str
    arguments: str


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    code: str | None
    message: str
    param: str | None


class ErrorEvent(Event, frozen=True, kw_only=True, tag="error"):
    """Tells it twice: OpenAI's clients raise what is in `error`; its documented form has the rest."""

    code: str | None
    message: str
    param: str | None
    error: ErrorDetails


EVENTS = (
    Created,
    InProgress,
    ItemAdded,
    PartAdded,
    TextDelta,
    TextDone,
    ReasoningDelta,
    ReasoningDone,
    ArgumentsDelta,
    ArgumentsDone,
    PartDone,
    ItemDone,
    Completed,
    Incomplete,
    Failed,
    ErrorEvent,
)
"""All that a stream may hold."""
