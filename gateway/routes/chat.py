"""POST /v1/chat/completions. Says what a conversation comes to; the endpoint does the rest."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from gateway.chat_plan import Conversation, chat_plan
from gateway.chat_shape import ChatShape
from gateway.constraints import constraint_of
from gateway.endpoint import EXAMPLE_MODEL, GenerationEndpoint, Plan
from gateway.prompts import check_num_words
from gateway.protocol.chat import ChatCompletionRequest
from gateway.protocol.responses import ChatCompletion, ChatCompletionChunk
from gateway.sampling import sampling_params
from gateway.tool_use import ToolMode
from model_registry.contract import ModelView

router = APIRouter()


def _plan(request: ChatCompletionRequest, model: ModelView) -> Plan:
    check_num_words(request.messages[-1].text, model.entry.model, "messages")
    use = request.tool_use
    conversation = Conversation(
        messages=request.conversation,
        tools=use,
        template_kwargs=request.template_kwargs,
        continues_final_message=bool(request.continue_final_message),
        uses_prompt_format=request.use_prompt_format is not False,
    )
    sampling = sampling_params(
        request,
        model.entry,
        max_tokens=request.token_limit,
        default_max_tokens=None,
        num_logprobs=request.num_logprobs,
        constraint=constraint_of(request.response_format, request.structured_outputs),
    )
    plan = chat_plan(conversation, model, sampling)
    return Plan(
        prompts=(plan.prompt,),
        sampling=plan.sampling,
        shape=ChatShape(
            model.model_id,
            no_usage=None if request.wants_usage_chunk else UNSET,
            may_call=bool(use),
            calls_are_named=use.mode is ToolMode.NAMED,
        ),
        new_reader=plan.new_reader,
    )


endpoint = GenerationEndpoint(
    path="/v1/chat/completions",
    request_type=ChatCompletionRequest,
    prompt_param="messages",
    plan=_plan,
    reply=ChatCompletion,
    chunks=(ChatCompletionChunk,),
    example={"model": EXAMPLE_MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]},
)


@router.post(
    endpoint.path, summary="Answer a conversation", openapi_extra=endpoint.request_body, responses=endpoint.responses
)
async def create_chat_completion(http: Request) -> Response:
    return await endpoint.answer(http)
