"""POST /v1/completions. Says what a text comes to; the endpoint does the rest."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from gateway.completions import TextShape
from gateway.endpoint import GenerationEndpoint, Plan
from gateway.prompts import check_num_words, raw_text, render_chat
from gateway.protocol.completions import CompletionRequest
from gateway.sampling import DEFAULT_COMPLETION_TOKENS, sampling_params
from model_registry.contract import ChatMessage, ModelView

router = APIRouter()


def _plan(request: CompletionRequest, model: ModelView) -> Plan:
    check_num_words(request.prompt, model.entry.model, "prompt")
    prompt_format = model.entry.model.generation.prompt_format
    message = ChatMessage("user", request.prompt)
    return Plan(
        prompt=render_chat([message], prompt_format) if request.use_prompt_format else raw_text(request.prompt),
        sampling=sampling_params(
            request,
            model.entry,
            max_tokens=request.max_tokens,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
            num_logprobs=request.logprobs,
        ),
        shape=TextShape(model.model_id, no_usage=None if request.wants_usage_chunk else UNSET),
    )


_endpoint = GenerationEndpoint(
    path="/v1/completions", request_type=CompletionRequest, prompt_param="prompt", plan=_plan
)


@router.post(_endpoint.path, summary="Go on with a text", openapi_extra=_endpoint.request_body)
async def create_completion(http: Request) -> Response:
    return await _endpoint.answer(http)
