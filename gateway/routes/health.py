"""GET /live: the event loop turns. GET /ready: requests can be served now. What orchestrators and balancers ask."""

from __future__ import annotations

from fastapi import APIRouter, Request

from gateway.dispatch import Dispatcher
from gateway.errors import DrainingError, ModelUnavailableError
from gateway.model_lane import STARTING_WAIT_S, unavailable_reason
from gateway.protocol import openapi

router = APIRouter()


@router.head("/live", include_in_schema=False)
@router.get("/live", summary="Whether the process works", responses=openapi.errors())
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    summary="Whether a model can be used",
    responses=openapi.errors(ModelUnavailableError, DrainingError),
)
async def ready(http: Request) -> dict[str, str]:
    dispatcher: Dispatcher = http.app.state.dispatcher
    if dispatcher.is_draining:
        raise DrainingError
    if not dispatcher.can_serve:
        reasons = [f"`{model.model_id}`: {unavailable_reason(model)}" for model in dispatcher.models]
        told = "; ".join(reasons) or "none is deployed"
        raise ModelUnavailableError(f"No model can be used yet ({told}).", retry_after_s=STARTING_WAIT_S)
    return {"status": "ready"}
