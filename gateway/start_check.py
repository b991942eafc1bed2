"""What can keep a gateway from starting, found before anything else is started: its address, and its files.

Called by the command line. Light: knows neither the application nor Ray, so that a supervisor can ask too.
"""

from __future__ import annotations

from gateway.listener import bind
from gateway.response_store import ResponseStore
from gateway.settings import PREFIX, GatewaySettings
from gateway.store_file import StoreError


async def check_start(settings: GatewaySettings) -> None:
    """Raises `BindError` or `StoreError`; one line says why and what to change."""
    bind(settings).close()
    store = response_store(settings)
    if store is not None:
        await _try(store, "responses_store")


def response_store(settings: GatewaySettings) -> ResponseStore | None:
    """Where responses are kept, if anywhere; not open yet."""
    if settings.responses_store is None:
        return None
    return ResponseStore(
        settings.responses_store, max_bytes=settings.responses_store_max_bytes, keep_s=settings.responses_ttl_s
    )


async def _try(store: ResponseStore, setting: str) -> None:
    try:
        await store.open()
    except StoreError as error:
        raise StoreError(f"{PREFIX}{setting.upper()}={error}; name another file or unset it") from None
    finally:
        await store.close()
