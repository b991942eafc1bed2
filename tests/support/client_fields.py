"""Every field that the openai client's own types know, as paths, read from its type definitions.

A path names a field of the body (`stream_options.include_usage`); where objects of several kinds may stand, the kind is
told by its type or role: `messages[user].content[text].text`. Lists add nothing to a path.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from typing_extensions import is_typeddict

KIND_FIELDS = ("type", "role", "mode")
"""Of objects that may stand in one place, the field that says which one it is: the first of these that it has."""


@cache
def client_fields(params: Any) -> frozenset[str]:
    """Paths of all fields of `params`: a TypedDict of the client, or a union of them."""
    return frozenset(_fields(params, ""))


def _fields(annotation: Any, path: str) -> Iterator[str]:
    objects = list(_objects_in(annotation))
    for one in objects:
        for kind in _kinds(one) if len(objects) > 1 and path else ("",):
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


def _kinds(one: Any) -> tuple[str, ...]:
    """What the object may call itself; nothing where it does not say."""
    hints = typing.get_type_hints(one)
    return next((words for name in KIND_FIELDS if (words := _words(hints.get(name)))), ("",))


def _words(annotation: Any) -> tuple[str, ...]:
    """Those that a value of this type may be; none where it may be something else, but for null."""
    match typing.get_origin(annotation):
        case typing.Literal:
            return typing.get_args(annotation)
        case typing.Union | types.UnionType:
            one, *others = (kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
            return () if others else _words(one)
    return ()
