"""POST /v1/completions. Says what a text comes to; the endpoint does the rest."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from gateway.constraints import constraint_of
from gateway.endpoint import EXAMPLE_MODEL, GenerationEndpoint, Plan
from gateway.errors import InvalidRequestError
from gateway.prompts import check_num_words, raw_text, render_chat
from gateway.protocol.completions import CompletionRequest, OnePrompt
from gateway.protocol.responses import TextCompletion
from gateway.sampling import DEFAULT_COMPLETION_TOKENS, sampling_params
from gateway.text_shape import TextShape
from model_registry.contract import ChatMessage, InfillPrompt, ModelView, Prompt, TokenPrompt

router = APIRouter()


def _plan(request: CompletionRequest, model: ModelView) -> Plan:
    ranks_sequences = request.num_sampled > request.num_choices
    return Plan(
        prompts=tuple(_prompt(one, request, model) for one in request.prompt),
        sampling=sampling_params(
            request,
            model.entry,
            max_tokens=request.max_tokens,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
            num_logprobs=0 if request.logprobs is None and ranks_sequences else request.logprobs,
            echo=bool(request.echo),
            num_prompt_logprobs=request.logprobs if request.echo else None,
            constraint=constraint_of(None, request.structured_outputs),
        ),
        shape=TextShape(
            model.model_id,
            no_usage=None if request.wants_usage_chunk else UNSET,
            shows_logprobs=request.logprobs is not None,
        ),
    )


def _prompt(one: OnePrompt, request: CompletionRequest, model: ModelView) -> Prompt:
    """Raises `InvalidRequestError` where token ids are given and a text is needed."""
    if isinstance(one, str):
        check_num_words(one, model.entry.model, "prompt")
        if request.suffix:
            return InfillPrompt(one, request.suffix)
        prompt_format = model.entry.model.generation.prompt_format
        return render_chat([ChatMessage("user", one)], prompt_format) if request.use_prompt_format else raw_text(one)
    if request.use_prompt_format:
        raise _needs_text("'use_prompt_format' puts a text into the model's format")
    if model.entry.model.input_word_limit is not None:
        raise _needs_text("this model limits the words of a prompt, which token ids hide")
    return TokenPrompt(one)


def _needs_text(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Invalid 'prompt': token ids cannot be taken, since {reason}. Send a string.",
        param="prompt",
        code="invalid_value",
    )


endpoint = GenerationEndpoint(
    path="/v1/completions",
    request_type=CompletionRequest,
    prompt_param="prompt",
    plan=_plan,
    reply=TextCompletion,
    chunks=(TextCompletion,),
    example={"model": EXAMPLE_MODEL, "prompt": "Once upon a time", "max_tokens": 32},
)


@router.post(
    endpoint.path, summary="Go on with a text", openapi_extra=endpoint.request_body, responses=endpoint.responses
)
async def create_completion(http: Request) -> Response:
    return await endpoint.answer(http)
