"""What can keep a gateway from starting, found before anything else is started: its address, and its stores.

Called by the command line. Light: knows neither the application nor Ray, so that a supervisor can ask too.
"""

from __future__ import annotations

from typing import Protocol

from gateway.listener import bind
from gateway.offline import OfflineStores
from gateway.response_store import ResponseStore
from gateway.settings import PREFIX, GatewaySettings
from gateway.store_file import StoreError


async def check_start(settings: GatewaySettings) -> None:
    """Raises `BindError` or `StoreError`; one line says why and what to change."""
    bind(settings).close()
    await _try(response_store(settings), "responses_store")
    await _try(offline_stores(settings), "files")


def response_store(settings: GatewaySettings) -> ResponseStore | None:
    """Where responses are kept, if anywhere; not open yet."""
    if settings.responses_store is None:
        return None
    return ResponseStore(
        settings.responses_store, max_bytes=settings.responses_store_max_bytes, keep_s=settings.responses_ttl_s
    )


def offline_stores(settings: GatewaySettings) -> OfflineStores | None:
    """Where files and batches are kept, if anywhere; not open yet."""
    if settings.files is None:
        return None
    return OfflineStores(settings.files, max_bytes=settings.files_max_bytes, keep_s=settings.files_ttl_s)


class _Store(Protocol):
    async def open(self) -> None: ...
    async def close(self) -> None: ...


async def _try(store: _Store | None, setting: str) -> None:
    if store is None:
        return
    try:
        await store.open()
    except StoreError as error:
        raise StoreError(f"{PREFIX}{setting.upper()} cannot be used: {error}; name another place or unset it") from None
    finally:
        await store.close()
