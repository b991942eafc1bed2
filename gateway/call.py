"""One request for a model, however it came: what is known of it beside its body, and what of this gateway serves it.

Made from an HTTP request by the endpoints, and from a line of a batch by whoever runs that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from starlette.datastructures import State
from starlette.requests import Request

from gateway.dispatch import Dispatcher
from gateway.kept_responses import KeptResponses
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings

SESSION_HEADER: Final = "x-session-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an endpoint needs besides a body."""

    settings: GatewaySettings
    metrics: Metrics
    dispatcher: Dispatcher
    kept_responses: KeptResponses
    trace_id: str
    received_at: float
    """By `time.monotonic`."""
    session: str | None = None
    is_background: bool = False
    """Nobody waits for it: whatever clients ask for comes first."""

    @classmethod
    def of(cls, http: Request) -> Self:
        return cls._in(
            http.app.state,
            trace_id=http.state.request_id,
            received_at=http.state.received_at,
            session=http.headers.get(SESSION_HEADER),
        )

    @classmethod
    def in_background(cls, app_state: State, *, trace_id: str, received_at: float) -> Self:
        return cls._in(app_state, trace_id=trace_id, received_at=received_at, is_background=True)

    @classmethod
    def _in(
        cls, app: State, *, trace_id: str, received_at: float, session: str | None = None, is_background: bool = False
    ) -> Self:
        return cls(
            settings=app.settings,
            metrics=app.metrics,
            dispatcher=app.dispatcher,
            kept_responses=app.kept_responses,
            trace_id=trace_id,
            received_at=received_at,
            session=session,
            is_background=is_background,
        )
