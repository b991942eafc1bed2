"""GET /v1/models and /v1/models/{id}: what is deployed, and whether it can be used."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from gateway.dispatch import Dispatcher
from gateway.endpoint import EXAMPLE_MODEL
from gateway.errors import ModelNotFoundError
from gateway.model_lane import unavailable_reason
from gateway.protocol import openapi
from gateway.protocol.responses import ModelCard, ModelList, encode
from model_registry.contract import ModelView, ReplicaState

router = APIRouter()

SLEEPING = "sleeping"
"""State of a model without replicas, of which a request starts the first."""
_BEST_FIRST = (
    ReplicaState.READY,
    ReplicaState.STARTING,
    ReplicaState.PENDING,
    ReplicaState.DRAINING,
    ReplicaState.FAILED,
)


@router.get(
    "/v1/models",
    summary="List the models",
    responses=openapi.success("All models that are deployed.", ModelList) | openapi.errors(),
)
async def list_models(http: Request) -> Response:
    dispatcher: Dispatcher = http.app.state.dispatcher
    return _json(ModelList(data=tuple(_card(model) for model in dispatcher.models)))


@router.get(
    "/v1/models/{model_id:path}",
    summary="One model",
    responses=openapi.success("The model.", ModelCard) | openapi.errors(ModelNotFoundError),
)
async def retrieve_model(http: Request, model_id: Annotated[str, Path(examples=[EXAMPLE_MODEL])]) -> Response:
    dispatcher: Dispatcher = http.app.state.dispatcher
    return _json(_card(dispatcher.model(model_id)))


def _card(model: ModelView) -> ModelCard:
    counts = Counter(replica.state for replica in model.replicas)
    state = next((state for state in _BEST_FIRST if counts[state]), None)
    organisation, slash, _ = model.model_id.partition("/")
    return ModelCard(
        id=model.model_id,
        created=model.created,
        owned_by=organisation if slash else "aviary",
        description=model.entry.model.model_description,
        state=state.value if state else SLEEPING if model.may_wait else "unavailable",
        reason=None if state is ReplicaState.READY else unavailable_reason(model),
        replicas={state.value: counts[state] for state in _BEST_FIRST if counts[state]},
        max_model_len=model.max_model_len,
    )


def _json(value: ModelCard | ModelList) -> Response:
    return Response(encode(value), media_type="application/json")
