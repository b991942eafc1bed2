"""Reads the schema's own shape: which keys a section accepts, under which names, and what lies below them.

The one place that looks inside pydantic's field descriptions. The loader takes suggestions and old names from it, the
tables and the JSON schema their rows. Holds no facts of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from model_registry.schema import RegistryEntry, Section


def yaml_names(attribute: str, field: FieldInfo) -> tuple[str, ...]:
    """The names a field has in YAML: today's first, then old ones."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (str(alias or attribute),)


def keys_of(sections: Iterable[type[Section]]) -> dict[str, tuple[str, ...]]:
    """Every key that one of the sections accepts → all names of its field."""
    return {
        name: names
        for section in sections
        for attribute, field in section.model_fields.items()
        for names in (yaml_names(attribute, field),)
        for name in names
    }


def sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(section for argument in get_args(annotation) for section in sections_in(argument))


def sections_under(sections: Iterable[type[Section]], key: str) -> tuple[type[Section], ...]:
    """The sections that may lie below a key of these sections."""
    return tuple(
        below
        for section in sections
        for attribute, field in section.model_fields.items()
        if key in yaml_names(attribute, field)
        for below in sections_in(field.annotation)
    )


def sections_at(location: Sequence[str | int]) -> tuple[type[Section], ...]:
    """The sections at a location as pydantic gives it, where tags of unions stand between keys."""
    sections: tuple[type[Section], ...] = (RegistryEntry,)
    for part in location:
        tagged = tuple(section for section in sections if type_of(section) == part)
        sections = tagged or sections_under(sections, str(part)) or _unless_key(sections, part)
    return sections


def _unless_key(sections: tuple[type[Section], ...], part: str | int) -> tuple[type[Section], ...]:
    return () if part in keys_of(sections) else sections


def type_of(section: type[Section]) -> str | None:
    """The value of `type` that chooses this section among others; None where there is no choice."""
    field = section.model_fields.get("type")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])
