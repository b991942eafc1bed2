"""POST /v1/chat/completions. Says what a conversation comes to; the endpoint does the rest."""

from __future__ import annotations

from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from gateway.answer_format import answer_format_of, reasoning_is_open
from gateway.answer_grammar import answer_constraint
from gateway.answer_readers import opening_to_repeat, reader_for, tokens_to_show
from gateway.chat_shape import ChatShape
from gateway.constraints import constraint_of
from gateway.endpoint import EXAMPLE_MODEL, GenerationEndpoint, Plan
from gateway.prompts import check_num_words, render_chat
from gateway.protocol.chat import ChatCompletionRequest
from gateway.protocol.responses import ChatCompletion, ChatCompletionChunk
from gateway.sampling import sampling_params
from gateway.tool_use import ToolMode
from model_registry.contract import ModelView, SamplingParams
from model_registry.tool_formats import AnswerFormat

router = APIRouter()


def _plan(request: ChatCompletionRequest, model: ModelView) -> Plan:
    check_num_words(request.messages[-1].text, model.entry.model, "messages")
    prompt_format = None if request.use_prompt_format is False else model.entry.model.generation.prompt_format
    format_ = answer_format_of(model, uses_template=not prompt_format)
    use = request.tool_use
    prompt = render_chat(
        request.conversation,
        prompt_format,
        tools=use.tools,
        tool_format=format_.tools,
        template_kwargs=request.template_kwargs,
        continues_final_message=bool(request.continue_final_message),
    )
    sampling = sampling_params(
        request,
        model.entry,
        max_tokens=request.token_limit,
        default_max_tokens=None,
        num_logprobs=request.num_logprobs,
        constraint=constraint_of(request.response_format, request.structured_outputs),
    )
    return Plan(
        prompts=(prompt,),
        sampling=tuple(_readable(one, format_, request) for one in sampling),
        shape=ChatShape(
            model.model_id,
            no_usage=None if request.wants_usage_chunk else UNSET,
            may_call=bool(use),
            calls_are_named=use.mode is ToolMode.NAMED,
        ),
        new_reader=partial(reader_for, format_, use),
    )


def _readable(sampling: SamplingParams, format_: AnswerFormat, request: ChatCompletionRequest) -> SamplingParams:
    """The text has what the answer's reader looks for, and what the tools guarantee."""
    use = request.tool_use
    is_reasoning = not request.continue_final_message and reasoning_is_open(format_, request.template_kwargs)
    return msgspec.structs.replace(
        sampling,
        constraint=answer_constraint(use, format_, sampling.constraint, is_reasoning=is_reasoning),
        shown_tokens=tokens_to_show(format_, use),
        repeats_opening=opening_to_repeat(format_),
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
