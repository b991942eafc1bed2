"""What the pool must remember when its manager's process is lost: who is wanted, and the secret. Plain data, and JSON.

Shared by manager, deployments and the command line; `store` keeps it. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import msgspec

from model_registry.changes import Change
from model_registry.schema import RegistryEntry


class PoolOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How patient the pool is."""

    load_timeout_s: float = 1800.0
    """Longest that one replica may take to load its model, fetching included."""
    drain_timeout_s: float = 30.0
    """Longest that a removed replica may take to finish its requests."""


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One way a model was deployed, and the replicas that were made so."""

    revision_id: str
    """Begins the ids of its replicas."""
    entry: RegistryEntry

    def owns(self, replica_id: str) -> bool:
        return replica_id.startswith(f"{self.revision_id}-")


class WantedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it should be, and as it was while replicas of that time may live."""

    revisions: tuple[Revision, ...]
    """Oldest first; the last is what is wanted."""
    created: int
    """Unix seconds of its first deployment."""

    @property
    def current(self) -> Revision:
        return self.revisions[-1]

    @property
    def entry(self) -> RegistryEntry:
        return self.current.entry

    @property
    def model_id(self) -> str:
        return self.entry.model_id


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment came to: ids of models, each in one of these."""

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    """New replicas take the place of those that live."""
    reconfigured: tuple[str, ...] = ()
    """Only settings or sizes changed, which living replicas take over."""
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()

    @classmethod
    def of(cls, changes: Mapping[str, Change | None], removed: Iterable[str]) -> Self:
        """From what each given entry changed, None for a new model."""

        def those(*wanted: Change | None) -> tuple[str, ...]:
            return tuple(model_id for model_id, one in changes.items() if one in wanted)

        return cls(
            added=those(None),
            replaced=those(Change.REPLICAS),
            reconfigured=those(Change.SETTINGS, Change.SIZES),
            unchanged=those(Change.NONE),
            removed=tuple(sorted(removed)),
        )


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
