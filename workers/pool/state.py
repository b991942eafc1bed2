"""What the pool must remember when its manager's process is lost: who is wanted, and the secret. Plain data, and JSON.

Shared by manager, deployments and the command line; `store` keeps it. Knows no Ray.
"""

from __future__ import annotations

from typing import Any

import msgspec

from model_registry.schema import RegistryEntry


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the pool is."""

    load_timeout_s: float = 1800.0
    """Longest that one replica may take to load its model, fetching included."""
    drain_timeout_s: float = 30.0
    """Longest that a removed replica may take to finish its requests."""


class WantedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it was deployed."""

    entry: RegistryEntry
    deployment_id: str
    """Begins the ids of its replicas: those of an earlier deployment of the same model are not its own."""
    created: int
    """Unix seconds of its first deployment."""


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the manager cannot see by looking at the cluster."""

    secret: str
    options: PoolOptions = PoolOptions()
    models: tuple[WantedModel, ...] = ()


def encode_state(state: PoolState) -> bytes:
    return msgspec.json.encode(state, enc_hook=_encode_entry)


def decode_state(data: bytes) -> PoolState:
    """Raises `msgspec.ValidationError` when the data is of another release of Aviary."""
    return msgspec.json.decode(data, type=PoolState, dec_hook=_decode_entry)


def _encode_entry(value: Any) -> Any:
    if isinstance(value, RegistryEntry):
        return value.model_dump(mode="json", exclude_unset=True)
    raise NotImplementedError(f"cannot store {type(value).__name__}")


def _decode_entry(expected: type, value: Any) -> Any:
    if expected is RegistryEntry:
        return RegistryEntry.model_validate(value, by_alias=False, by_name=True)
    raise NotImplementedError(f"cannot read {expected.__name__}")
