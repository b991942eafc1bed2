"""POST /v1/embeddings. Says what inputs come to; the endpoint does the rest."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from gateway.endpoint import EXAMPLE_MODEL
from gateway.errors import InvalidRequestError
from gateway.prompts import check_num_words
from gateway.protocol.completions import OnePrompt
from gateway.protocol.embeddings import EmbeddingObject, EmbeddingReply, EmbeddingRequest, EmbeddingUsage
from gateway.task_endpoint import TaskEndpoint, TaskPlan
from model_registry.contract import Embed, ModelView, Prompt, SequenceOutput, TextPrompt, TextSegment, TokenPrompt

router = APIRouter()

PARAM = "input"
_FLOAT_BYTES = 4


def _plan(request: EmbeddingRequest, model: ModelView) -> TaskPlan:
    encode = _as_base64 if request.encoding_format == "base64" else _as_floats

    def reply(outputs: Sequence[SequenceOutput], model: ModelView) -> EmbeddingReply:
        num_tokens = sum(output.usage.prompt_tokens for output in outputs if output.usage is not None)
        return EmbeddingReply(
            data=tuple(
                EmbeddingObject(index=index, embedding=encode(output.embedding)) for index, output in enumerate(outputs)
            ),
            model=model.model_id,
            usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        )

    return TaskPlan(
        prompts=tuple(_prompt(one, model) for one in request.input), task=Embed(request.dimensions), reply=reply
    )


def _prompt(one: OnePrompt, model: ModelView) -> Prompt:
    """Text is data here: what looks like a special token in it is text. Raises `InvalidRequestError`."""
    if isinstance(one, str):
        check_num_words(one, model.entry.model, PARAM)
        return TextPrompt((TextSegment(one, trusted=False),), has_closing=True)
    if model.entry.model.input_word_limit is not None:
        raise InvalidRequestError(
            f"Invalid '{PARAM}': token ids cannot be taken, since this model limits the words of a text, which token "
            "ids hide. Send a string.",
            param=PARAM,
            code="invalid_value",
        )
    return TokenPrompt(one)


def _as_floats(vector: bytes) -> Sequence[float]:
    return struct.unpack(f"<{len(vector) // _FLOAT_BYTES}f", vector)


def _as_base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


endpoint = TaskEndpoint(
    path="/v1/embeddings",
    request_type=EmbeddingRequest,
    prompt_param=PARAM,
    plan=_plan,
    reply=EmbeddingReply,
    example={"model": EXAMPLE_MODEL, "input": ["a text", "another"], "encoding_format": "float"},
)


@router.post(
    endpoint.path, summary="Make vectors of texts", openapi_extra=endpoint.request_body, responses=endpoint.responses
)
async def create_embeddings(http: Request) -> Response:
    return await endpoint.answer(http)
