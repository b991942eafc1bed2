"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them.

Says what a conversation of blocks comes to; the endpoints do the rest.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from gateway.answer_format import answer_format_of
from gateway.call import Call
from gateway.chat_plan import ChatPlan, Conversation, PlannedWork, chat_plan
from gateway.endpoint import EXAMPLE_MODEL, Endpoint
from gateway.error_bodies import ANTHROPIC_PATH
from gateway.errors import UnsupportedParameterError
from gateway.message_reply import MessageReply
from gateway.output_stream import OutputStream
from gateway.prompts import check_num_words
from gateway.protocol.message_create import CountTokensRequest, MessageFields, MessageRequest
from gateway.protocol.message_objects import EVENTS, Message, MessageError, MessageTokensCount
from gateway.sampling import sampling_params
from gateway.task_endpoint import TaskEndpoint, TaskPlan
from model_registry.contract import (
    Constraint,
    ConstraintKind,
    ModelView,
    SamplingParams,
    SequenceOutput,
    Tokenize,
)
from model_registry.tool_formats import ReasoningFormat

router = APIRouter()

_EXAMPLE: Final[dict[str, Any]] = {
    "model": EXAMPLE_MODEL,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWork(PlannedWork):
    """One sequence, that becomes one message."""

    request_id: str

    def begin(self, stream: OutputStream, request: MessageRequest) -> MessageReply:
        return MessageReply(
            stream,
            Message(id=f"msg_{uuid.uuid4().hex}", model=self.model_id),
            request_id=self.request_id,
            stops=request.stop_sequences or (),
            new_reader=self.plan.new_reader,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesEndpoint(Endpoint[MessageRequest]):
    async def work(self, call: Call, request: MessageRequest, model: ModelView) -> MessageWork:
        sampling = sampling_params(
            request.sampling,
            model.entry,
            max_tokens=request.max_tokens,
            default_max_tokens=None,
            constraint=_constraint(request),
        )
        return MessageWork(
            model_id=model.model_id,
            request_id=call.trace_id,
            plan=_chat_plan(request, model, sampling),
        )


def _chat_plan(request: MessageFields, model: ModelView, sampling: Sequence[SamplingParams] = ()) -> ChatPlan:
    _check_thinking(request, model)
    messages = request.conversation
    check_num_words(messages[-1].content, model.entry.model, "messages")
    conversation = Conversation(
        messages=messages,
        tools=request.tool_use,
        template_kwargs=request.template_kwargs,
        continues_final_message=request.continues_final_message,
    )
    return chat_plan(conversation, model, sampling)


def _check_thinking(request: MessageFields, model: ModelView) -> None:
    """Raises `UnsupportedParameterError` where the model is known not to think as it is asked to."""
    uses_template = not model.entry.model.generation.prompt_format
    if request.effort is not None and not uses_template:
        raise _unthinkable("output_config.effort", "this model's prompts are made by its prompt_format")
    reasoning = answer_format_of(model, uses_template=uses_template).reasoning
    is_known = model.answer_format is not None or not uses_template
    if request.wants_thinking and is_known and (not uses_template or reasoning is ReasoningFormat.NONE):
        raise _unthinkable("thinking", "this model's prompts have no place for it")


def _unthinkable(param: str, reason: str) -> UnsupportedParameterError:
    return UnsupportedParameterError(f"Unsupported parameter: '{param}': {reason}. Leave it out.", param=param)


def _constraint(request: MessageRequest) -> Constraint | None:
    """What the format of the text allows."""
    if request.schema_text is None:
        return None
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=request.schema_text, param="output_config.format.schema")


def _count(request: CountTokensRequest, model: ModelView) -> TaskPlan:
    return TaskPlan(prompts=(_chat_plan(request, model).prompt,), task=Tokenize(), reply=_counted)


def _counted(outputs: Sequence[SequenceOutput], _model: ModelView) -> MessageTokensCount:
    return MessageTokensCount(sum(len(output.tokenized.token_ids) for output in outputs if output.tokenized))


_messages = MessagesEndpoint(
    path=ANTHROPIC_PATH,
    request_type=MessageRequest,
    prompt_param="messages",
    reply=Message,
    chunks=EVENTS,
    error=MessageError,
    example=_EXAMPLE | {"max_tokens": 1024},
)
_count_tokens = TaskEndpoint(
    path=f"{ANTHROPIC_PATH}/count_tokens",
    request_type=CountTokensRequest,
    prompt_param="messages",
    plan=_count,
    reply=MessageTokensCount,
    error=MessageError,
    example=_EXAMPLE,
)


@router.post(
    _messages.path,
    summary="Answer a conversation, in Anthropic's words",
    openapi_extra=_messages.request_body,
    responses=_messages.responses,
)
async def create_message(http: Request) -> Response:
    return await _messages.answer(http)


@router.post(
    _count_tokens.path,
    summary="Count the tokens of a conversation",
    openapi_extra=_count_tokens.request_body,
    responses=_count_tokens.responses,
)
async def count_tokens(http: Request) -> Response:
    return await _count_tokens.answer(http)
