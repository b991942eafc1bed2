"""What a changed registry file means for a model that is deployed already. A pure function of both entries.

The pool's manager asks it: settings reach gateways and living workers at once, sizes are changed around loaded weights,
everything else needs new replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, TypeVar

from pydantic import BaseModel

from model_registry.schema import DeepSpeed, RegistryEntry

_GENERATION: Final = "model.generation"
SETTINGS: Final = (
    "deployment.autoscaling_config",
    "deployment.max_ongoing_requests",
    "deployment.max_queued_requests",
    "model.model_description",
    "model.max_input_words",
    f"{_GENERATION}.max_input_words",
    f"{_GENERATION}.max_input_tokens",
    f"{_GENERATION}.generate_kwargs",
    f"{_GENERATION}.prompt_format",
    f"{_GENERATION}.stopping_sequences",
    f"{_GENERATION}.tool_format",
    f"{_GENERATION}.reasoning_format",
    "scaling.pg_timeout_s",
)
"""Attributes of an entry that are read anew for every request or decision; no weights depend on them."""
SIZES: Final = (
    f"{_GENERATION}.max_batch_size",
    f"{_GENERATION}.max_batch_tokens",
    f"{_GENERATION}.max_model_len",
    f"{_GENERATION}.kv_cache_tokens",
)
"""Attributes that an engine is built with; no weights depend on them either."""

SectionT = TypeVar("SectionT", bound=BaseModel)


class Change(StrEnum):
    NONE = "none"
    SETTINGS = "settings"
    """Takes effect at once, in the replicas that live."""
    SIZES = "sizes"
    """Replicas that serve take it over between two steps; loaded weights stay. Where none serves, all are made anew."""
    REPLICAS = "replicas"
    """Needs new replicas: what is loaded, how, or what it reserves is another."""


def change_between(old: RegistryEntry, new: RegistryEntry) -> Change:
    """The least that brings a deployed model from one entry to the other."""
    if old == new:
        return Change.NONE
    if _without(old, SETTINGS) == _without(new, SETTINGS):
        return Change.SETTINGS
    if _can_be_resized(new) and _without(old, SETTINGS + SIZES) == _without(new, SETTINGS + SIZES):
        return Change.SIZES
    return Change.REPLICAS


def _can_be_resized(entry: RegistryEntry) -> bool:
    """Not where steps are compiled for their sizes, and not where several ranks would have to agree on them."""
    initializer = entry.model.initialization.initializer
    return not isinstance(initializer, DeepSpeed) and getattr(initializer, "torch_compile", None) is None


def _without(entry: RegistryEntry, paths: Sequence[str]) -> RegistryEntry:
    for path in paths:
        entry = _reset(entry, path.split("."))
    return entry


def _reset(section: SectionT, path: list[str]) -> SectionT:
    """A copy whose value at the path is the default."""
    name, *rest = path
    field = type(section).model_fields[name]
    value = _reset(getattr(section, name), rest) if rest else field.get_default(call_default_factory=True)
    return section.model_copy(update={name: value})
