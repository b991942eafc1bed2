"""POST /v1/chat/completions. Says what a conversation comes to; the endpoint does the rest."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from gateway.chat_shape import ChatShape
from gateway.constraints import constraint_of
from gateway.endpoint import EXAMPLE_MODEL, GenerationEndpoint, Plan
from gateway.prompts import check_num_words, render_chat
from gateway.protocol.chat import ChatCompletionRequest, Message
from gateway.protocol.responses import ChatCompletion, ChatCompletionChunk
from gateway.sampling import sampling_params
from model_registry.contract import ChatMessage, ModelView

router = APIRouter()


def chat_messages(messages: Iterable[Message]) -> list[ChatMessage]:
    """The conversation as templates know it."""
    return [
        ChatMessage("system" if message.role == "developer" else message.role, message.text) for message in messages
    ]


def _plan(request: ChatCompletionRequest, model: ModelView) -> Plan:
    check_num_words(request.messages[-1].text, model.entry.model, "messages")
    prompt_format = None if request.use_prompt_format is False else model.entry.model.generation.prompt_format
    return Plan(
        prompts=(render_chat(chat_messages(request.messages), prompt_format),),
        sampling=sampling_params(
            request,
            model.entry,
            max_tokens=request.token_limit,
            default_max_tokens=None,
            num_logprobs=request.num_logprobs,
            constraint=constraint_of(request.response_format, request.structured_outputs),
        ),
        shape=ChatShape(model.model_id, no_usage=None if request.wants_usage_chunk else UNSET),
    )


_endpoint = GenerationEndpoint(
    path="/v1/chat/completions",
    request_type=ChatCompletionRequest,
    prompt_param="messages",
    plan=_plan,
    reply=ChatCompletion,
    chunks=(ChatCompletionChunk,),
    example={"model": EXAMPLE_MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]},
)


@router.post(
    _endpoint.path, summary="Answer a conversation", openapi_extra=_endpoint.request_body, responses=_endpoint.responses
)
async def create_chat_completion(http: Request) -> Response:
    return await _endpoint.answer(http)
