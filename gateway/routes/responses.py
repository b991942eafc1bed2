"""POST /v1/responses, and what can be done with a response that is kept.

Says what a conversation of items comes to; the endpoint does the rest.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response as HttpResponse

from gateway.call import Call
from gateway.chat_plan import Conversation, PlannedWork, chat_plan
from gateway.constraints import ANY_OBJECT
from gateway.conversation import Json, chat_messages
from gateway.endpoint import EXAMPLE_MODEL, Endpoint
from gateway.errors import InvalidRequestError, ResponseNotFoundError, UnsupportedParameterError
from gateway.kept_responses import KeptResponses
from gateway.output_stream import OutputStream
from gateway.prompts import check_num_words
from gateway.protocol import openapi
from gateway.protocol.client_schemas import without_any_name
from gateway.protocol.response_create import JsonSchemaFormat, ResponseRequest
from gateway.protocol.response_items import KeptItem
from gateway.protocol.response_objects import EVENTS, DeletedResponse, ItemList, Response
from gateway.protocol.response_queries import ItemListQuery, RetrieveQuery
from gateway.protocol.responses import encode
from gateway.response_ids import new_response_id
from gateway.response_reply import ResponseReply
from gateway.sampling import sampling_params
from model_registry.contract import Constraint, ConstraintKind, ModelView, SamplingParams

router = APIRouter()

_KEPT_ERRORS: Final = openapi.errors(InvalidRequestError, ResponseNotFoundError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseWork(PlannedWork):
    """One sequence, that becomes one response."""

    params: SamplingParams
    """As the request asks for them."""
    new_items: tuple[KeptItem, ...]
    """Of the conversation, for those that go on with it."""
    kept: KeptResponses

    def begin(self, stream: OutputStream, request: ResponseRequest) -> ResponseReply:
        begun = _begun(request, self.model_id, self.params, is_kept=self.kept.keeps(request.store))

        async def keep(finished: Response) -> Response:
            return await self.kept.keep(finished, self.new_items)

        return ResponseReply(stream, begun, keep, new_reader=self.plan.new_reader)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesEndpoint(Endpoint[ResponseRequest]):
    async def work(self, call: Call, request: ResponseRequest, model: ModelView) -> ResponseWork:
        kept = call.kept_responses
        before = await kept.items_before(request.previous_response_id)
        new = await kept.follow(request.items)
        messages = chat_messages(request.instructions, [*before, *new])
        check_num_words(messages[-1].content, model.entry.model, "input")
        conversation = Conversation(
            messages=messages,
            tools=request.tool_use,
            template_kwargs=request.template_kwargs,
            uses_prompt_format=request.use_prompt_format is not False,
        )
        _check_effort(request, conversation, model)
        params = _sampling(request, model)
        return ResponseWork(
            model_id=model.model_id,
            plan=chat_plan(conversation, model, [params]),
            params=params,
            new_items=tuple(new),
            kept=kept,
        )


def _check_effort(request: ResponseRequest, conversation: Conversation, model: ModelView) -> None:
    """Only a chat template can know about it."""
    effort = request.reasoning.effort if request.reasoning else None
    if effort in (None, "none") or not (conversation.uses_prompt_format and model.entry.model.generation.prompt_format):
        return
    raise UnsupportedParameterError(
        "Unsupported parameter: 'reasoning.effort' is a variable of chat templates, and this model's prompts are made "
        "by its prompt_format instead. Leave it out.",
        param="reasoning.effort",
    )


def _sampling(request: ResponseRequest, model: ModelView) -> SamplingParams:
    [params] = sampling_params(
        request,
        model.entry,
        max_tokens=request.max_output_tokens,
        default_max_tokens=None,
        num_logprobs=request.num_logprobs,
        constraint=_constraint(request),
    )
    return params


def _constraint(request: ResponseRequest) -> Constraint | None:
    """What the format of the text allows."""
    wanted = request.text.format if request.text else None
    if wanted is None or wanted.type == "text":
        return None
    if not isinstance(wanted, JsonSchemaFormat):
        return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=ANY_OBJECT, param="text.format")
    source = json.dumps(without_any_name(wanted.schema_), ensure_ascii=False)
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=source, param="text.format.schema")


def _begun(request: ResponseRequest, model_id: str, params: SamplingParams, *, is_kept: bool) -> Response:
    """The response before there is any output. It tells the settings in use, also those that nobody asked for."""
    text_format = request.text.format if request.text else None
    choice = request.tool_choice
    return Response(
        id=new_response_id(),
        created_at=int(time.time()),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        model=model_id,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning={"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        safety_identifier=request.safety_identifier,
        store=is_kept,
        temperature=params.temperature,
        text={"format": _json(text_format) if text_format else {"type": "text"}, "verbosity": "medium"},
        tool_choice=_json(choice) if isinstance(choice, BaseModel) else choice or "auto",
        tools=tuple(_json(tool) for tool in request.tools or ()),
        top_logprobs=request.top_logprobs or 0,
        top_p=params.top_p if request.top_p is None else request.top_p,
        user=request.user,
        metadata=request.metadata or {},
    )


def _json(part: BaseModel) -> Json:
    """As the client sent it."""
    return part.model_dump(mode="json", by_alias=True, exclude_unset=True)


endpoint = ResponsesEndpoint(
    path="/v1/responses",
    request_type=ResponseRequest,
    prompt_param="input",
    params={"reasoning_effort": "reasoning.effort"},
    reply=Response,
    chunks=EVENTS,
    example={"model": EXAMPLE_MODEL, "input": "What is the capital of France?"},
)


@router.post(
    endpoint.path,
    summary="Answer a conversation of items",
    openapi_extra=endpoint.request_body,
    responses=endpoint.responses,
)
async def create_response(http: Request) -> HttpResponse:
    return await endpoint.answer(http)


@router.get(
    "/v1/responses/{response_id}",
    summary="A response that is kept",
    responses=openapi.success("The response.", Response) | _KEPT_ERRORS,
)
async def retrieve_response(http: Request, response_id: str) -> HttpResponse:
    RetrieveQuery.parse(http.query_params.multi_items())
    return _answered(await _kept(http).body(response_id))


@router.delete(
    "/v1/responses/{response_id}",
    summary="Keep a response no longer",
    responses=openapi.success("It is gone.", DeletedResponse) | _KEPT_ERRORS,
)
async def delete_response(http: Request, response_id: str) -> HttpResponse:
    await _kept(http).delete(response_id)
    return _answered(encode(DeletedResponse(id=response_id)))


@router.post(
    "/v1/responses/{response_id}/cancel",
    summary="Refused: no response is made in the background",
    responses=openapi.success("Never.", Response) | _KEPT_ERRORS,
)
async def cancel_response(http: Request, response_id: str) -> HttpResponse:
    await _kept(http).body(response_id)
    raise InvalidRequestError("Cannot cancel a synchronous response.")


@router.get(
    "/v1/responses/{response_id}/input_items",
    summary="What a response was made from",
    responses=openapi.success("The items, page by page.", ItemList) | _KEPT_ERRORS,
)
async def list_input_items(http: Request, response_id: str) -> HttpResponse:
    query = ItemListQuery.parse(http.query_params.multi_items())
    items = await _kept(http).input_items(response_id)
    return _answered(encode(_page(items if query.order == "asc" else items[::-1], query)))


def _page(items: list[Json], query: ItemListQuery) -> ItemList:
    """Raises `InvalidRequestError` when it is to begin after an item that is not there."""
    ids = [item["id"] for item in items]
    if query.after is not None and query.after not in ids:
        raise InvalidRequestError(
            "Invalid 'after': no input item of this response has that id.", param="after", code="invalid_value"
        )
    start = 0 if query.after is None else ids.index(query.after) + 1
    page = items[start : start + query.limit]
    return ItemList(
        data=tuple(page),
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=start + query.limit < len(items),
    )


def _kept(http: Request) -> KeptResponses:
    kept: KeptResponses = http.app.state.kept_responses
    return kept


def _answered(body: bytes) -> HttpResponse:
    return HttpResponse(body, media_type="application/json")
