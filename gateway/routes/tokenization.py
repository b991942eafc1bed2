"""POST /v1/tokenize and /v1/detokenize, as vLLM has them. Says what they ask of a worker's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.answer_format import answer_format_of
from gateway.endpoint import EXAMPLE_MODEL
from gateway.errors import UnsupportedParameterError
from gateway.prompts import render_chat
from gateway.protocol.tokenization import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from gateway.task_endpoint import TaskEndpoint, TaskPlan
from model_registry.contract import (
    ChatMessage,
    ChatPrompt,
    Detokenize,
    ModelView,
    Prompt,
    SequenceOutput,
    TextPrompt,
    TextSegment,
    Tokenize,
    TokenPrompt,
)

router = APIRouter()


def _plan_tokenize(request: TokenizeRequest, model: ModelView) -> TaskPlan:
    return TaskPlan(
        prompts=(_prompt(request, model),),
        task=Tokenize(bool(request.return_token_strs)),
        prompt_param="prompt" if request.messages is None else "messages",
        reply=_tokens_told,
    )


def _prompt(request: TokenizeRequest, model: ModelView) -> Prompt:
    prompt_format = model.entry.model.generation.prompt_format
    if request.messages is not None:
        return _conversation(request, model)
    text = request.prompt or ""
    if request.use_prompt_format:
        return render_chat([ChatMessage("user", text)], prompt_format)
    return TextPrompt((TextSegment(text, trusted=True),), has_opening=request.has_opening)


def _conversation(request: TokenizeRequest, model: ModelView) -> Prompt:
    """Raises `UnsupportedParameterError` for what the registry's own formats cannot say."""
    prompt_format = None if request.use_prompt_format is False else model.entry.model.generation.prompt_format
    prompt = render_chat(
        request.conversation,
        prompt_format,
        tools=request.tool_use.tools,
        tool_format=answer_format_of(model, uses_template=not prompt_format).tools,
        template_kwargs=request.chat_template_kwargs or {},
        continues_final_message=bool(request.continue_final_message),
    )
    if isinstance(prompt, ChatPrompt):
        return msgspec.structs.replace(prompt, opens_answer=request.opens_answer)
    if not request.opens_answer and not request.continue_final_message:
        raise UnsupportedParameterError(
            "Unsupported parameter: 'add_generation_prompt' takes the model's own chat template, and this model has a "
            "prompt_format, which always opens the answer. Leave it out, or set 'use_prompt_format' to false.",
            param="add_generation_prompt",
        )
    return prompt


def _tokens_told(outputs: Sequence[SequenceOutput], model: ModelView) -> TokenizeReply:
    (output,) = outputs
    tokenized = output.tokenized
    assert tokenized is not None  # noqa: S101  the task's only end but a fault
    return TokenizeReply(
        count=len(tokenized.token_ids),
        max_model_len=model.max_model_len,
        tokens=tokenized.token_ids,
        token_strs=tokenized.names,
    )


def _plan_detokenize(request: DetokenizeRequest, _model: ModelView) -> TaskPlan:
    return TaskPlan(prompts=(TokenPrompt(tuple(request.tokens)),), task=Detokenize(), reply=_text_told)


def _text_told(outputs: Sequence[SequenceOutput], _model: ModelView) -> DetokenizeReply:
    return DetokenizeReply(prompt="".join(output.text for output in outputs))


_tokenize = TaskEndpoint(
    path="/v1/tokenize",
    request_type=TokenizeRequest,
    prompt_param="prompt",
    plan=_plan_tokenize,
    reply=TokenizeReply,
    example={"model": EXAMPLE_MODEL, "prompt": "Once upon a time"},
)
_detokenize = TaskEndpoint(
    path="/v1/detokenize",
    request_type=DetokenizeRequest,
    prompt_param="tokens",
    plan=_plan_detokenize,
    reply=DetokenizeReply,
    example={"model": EXAMPLE_MODEL, "tokens": [72, 105]},
)


@router.post(
    _tokenize.path,
    summary="Tell a prompt's tokens",
    openapi_extra=_tokenize.request_body,
    responses=_tokenize.responses,
)
async def tokenize(http: Request) -> Response:
    return await _tokenize.answer(http)


@router.post(
    _detokenize.path,
    summary="Tell the text of tokens",
    openapi_extra=_detokenize.request_body,
    responses=_detokenize.responses,
)
async def detokenize(http: Request) -> Response:
    return await _detokenize.answer(http)
