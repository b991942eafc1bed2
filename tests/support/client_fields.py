"""Every field that the openai client's own types know, as paths, read from its type definitions.

A path names a field of the body (`stream_options.include_usage`); where objects of several kinds may stand, the kind is
told by its role or type: `messages[user].content[text].text`. Lists add nothing to a path.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from typing_extensions import is_typeddict

KIND_FIELDS = ("role", "type", "mode")
"""Of objects that may stand in one place, the field that says which one it is."""


@cache
def client_fields(params: Any) -> frozenset[str]:
    """Paths of all fields of `params`: a TypedDict of the client, or a union of them."""
    return frozenset(_fields(params, ""))


def _fields(annotation: Any, path: str) -> Iterator[str]:
    objects = list(_objects_in(annotation))
    for one in objects:
        kind = _kind(one) if len(objects) > 1 and path else ""
        prefix = f"{path}[{kind}]." if kind else f"{path}." if path else ""
        for name, hint in typing.get_type_hints(one).items():
            yield prefix + name
            yield from _fields(hint, prefix + name)


def _objects_in(annotation: Any) -> Iterator[Any]:
    """The TypedDicts that a value of this type may be, or hold as items of a list."""
    if is_typeddict(annotation):
        yield annotation
    elif typing.get_origin(annotation) is not dict:
        for argument in typing.get_args(annotation):
            yield from _objects_in(argument)


def _kind(one: Any) -> str:
    hints = typing.get_type_hints(one)
    field = next((name for name in KIND_FIELDS if typing.get_origin(hints.get(name)) is Literal), None)
    return typing.get_args(hints[field])[0] if field else ""
