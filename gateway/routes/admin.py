"""POST /admin/reload: the registry's files are read again and what they say is deployed. Needs the admin key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi import APIRouter, Request

from gateway.errors import AdminClosedError, KeyMissingError, KeyRejectedError, RegistryRefusedError
from gateway.protocol import openapi
from gateway.settings import GatewaySettings

router = APIRouter()

Reload = Callable[[], Awaitable[Mapping[str, Sequence[str]]]]
"""Reads and deploys; model ids by what became of them. Raises `RegistryRefusedError`, and then changed nothing."""


@router.post(
    "/admin/reload",
    summary="Read the registry again and deploy what changed",
    responses=openapi.errors(
        RegistryRefusedError, KeyMissingError, KeyRejectedError, AdminClosedError, *openapi.BODY_ERRORS
    ),
)
async def reload(http: Request) -> dict[str, list[str]]:
    _check_key(http)
    reload_registry: Reload | None = http.app.state.reload
    if reload_registry is None:
        raise AdminClosedError("This gateway has no registry of its own; set AVIARY_REGISTRY where it is started.")
    return {outcome: list(model_ids) for outcome, model_ids in (await reload_registry()).items()}


def _check_key(http: Request) -> None:
    settings: GatewaySettings = http.app.state.settings
    if settings.admin_key is None:
        raise AdminClosedError("Admin endpoints are closed; set AVIARY_ADMIN_KEY to open them.")
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise KeyMissingError
    if not hmac.compare_digest(key.encode(), settings.admin_key.get_secret_value().encode()):
        raise KeyRejectedError
