"""What a changed registry file means for a model that is deployed already. A pure function of both entries.

The pool's manager asks it: settings reach gateways and living workers at once, everything else needs new replicas.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

from pydantic import BaseModel

from model_registry.schema import RegistryEntry

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
    "scaling.pg_timeout_s",
)
"""Attributes of an entry that are read anew for every request or decision; no weights depend on them."""

SectionT = TypeVar("SectionT", bound=BaseModel)


class Change(StrEnum):
    NONE = "none"
    SETTINGS = "settings"
    """Takes effect at once, in the replicas that live."""
    REPLICAS = "replicas"
    """Needs new replicas: what is loaded, how, or what it reserves is another."""


def change_between(old: RegistryEntry, new: RegistryEntry) -> Change:
    """The least that brings a deployed model from one entry to the other."""
    if old == new:
        return Change.NONE
    return Change.SETTINGS if _without_settings(old) == _without_settings(new) else Change.REPLICAS


def _without_settings(entry: RegistryEntry) -> RegistryEntry:
    for path in SETTINGS:
        entry = _reset(entry, path.split("."))
    return entry


def _reset(section: SectionT, path: list[str]) -> SectionT:
    """A copy whose value at the path is the default."""
    name, *rest = path
    field = type(section).model_fields[name]
    value = _reset(getattr(section, name), rest) if rest else field.get_default(call_default_factory=True)
    return section.model_copy(update={name: value})
