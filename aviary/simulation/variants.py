"""Settings side by side: one registry entry becomes several that differ in the values to compare. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from pydantic import ValidationError

from aviary.errors import UsageError
from model_registry.keys import keys_of
from model_registry.schema import AutoscalingConfig, RegistryEntry

MAX_VARIANTS: Final = 64
_PLACES: Final = {
    **dict.fromkeys(keys_of([AutoscalingConfig]), ("deployment_config", "autoscaling_config")),
    **dict.fromkeys(("max_ongoing_requests", "max_queued_requests"), ("deployment_config",)),
    **dict.fromkeys(("max_batch_size", "max_batch_tokens", "kv_cache_tokens"), ("model_config", "generation")),
}
"""Every key that a simulation feels, and the section it is in."""
_TARGETS: Final = frozenset(key for key in keys_of([AutoscalingConfig]) if key.startswith("target_"))
_TARGETS_THAT_GO_TOGETHER: Final = frozenset(("target_ongoing_tokens", "target_kv_cache_usage"))
_INT: Final = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to set it."""

    label: str
    """`key=value key=value`; empty where nothing is compared."""
    entry: RegistryEntry


def read_comparison(text: str) -> tuple[str, tuple[str, ...]]:
    """`KEY=V1,V2,…` taken apart. Raises `UsageError`."""
    key, _, listed = text.partition("=")
    values = tuple(value.strip() for value in listed.split(",") if value.strip())
    if not values:
        raise UsageError(f"--compare {text}: has no values; write KEY=V1,V2,…")
    if key not in _PLACES:
        raise UsageError(f"--compare {text}: {key} is no setting that a simulation feels; known: {', '.join(_PLACES)}")
    return key, values


def variants_of(entry: RegistryEntry, comparisons: Sequence[tuple[str, Sequence[str]]]) -> list[Variant]:
    """Every combination of the values, in order. Raises `UsageError` where one is not valid."""
    choices = list(product(*([(key, value) for value in values] for key, values in comparisons)))
    if len(choices) > MAX_VARIANTS:
        raise UsageError(f"--compare asks for {len(choices)} variants, more than {MAX_VARIANTS}; compare fewer values")
    return [Variant(" ".join(f"{key}={value}" for key, value in chosen), _with(entry, chosen)) for chosen in choices]


def _with(entry: RegistryEntry, chosen: Sequence[tuple[str, str]]) -> RegistryEntry:
    data = entry.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for key, value in chosen:
        section = data
        for part in _PLACES[key]:
            section = section.setdefault(part, {})
        for other in _replaced_by(key):
            section.pop(other, None)
        section[key] = _read(value)
    try:
        return RegistryEntry.model_validate(data)
    except ValidationError as error:
        reasons = "; ".join(detail["msg"] for detail in error.errors())
        label = " ".join(f"{key}={value}" for key, value in chosen)
        raise UsageError(f"--compare: {entry.model_id} cannot have {label}: {reasons}") from None


def _replaced_by(key: str) -> Iterator[str]:
    """Keys that this one takes the place of: other names of it, and targets that are not set beside it."""
    names = keys_of([AutoscalingConfig]).get(key, (key,))
    yield from names
    if key in _TARGETS:
        is_kept = _TARGETS_THAT_GO_TOGETHER if key in _TARGETS_THAT_GO_TOGETHER else frozenset()
        yield from _TARGETS - is_kept


def _read(value: str) -> Any:
    if value == "null":
        return None
    if _INT.fullmatch(value):
        return int(value)
    try:
        return float(value)
    except ValueError:
        return value
