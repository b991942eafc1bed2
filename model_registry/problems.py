"""What is wrong with a registry, in people's words: file, key path, given value, next step.

Translates pydantic's errors; its wording, union tags and URLs go no further. Used by the loader only; what others see
is `RegistryError`, which holds all problems of a folder at once.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from model_registry.keys import keys_of, sections_at, type_of
from model_registry.schema import INITIALIZERS
from model_registry.strict_yaml import ABSENT, KeyPath, value_under

MAX_SHOWN_CHARACTERS: Final = 60

_MESSAGES: Final = {
    "missing": "is required",
    "int_type": "{given} is not a whole number",
    "float_type": "{given} is not a number",
    "finite_number": "{given} is not a finite number",
    "bool_type": "{given} is neither true nor false",
    "string_type": "{given} is not text",
    "list_type": "{given} is not a list",
    "dict_type": "{given} is not a mapping",
    "model_type": "{given} is not a mapping",
    "greater_than": "{given} is not greater than {gt}",
    "greater_than_equal": "{given} is not greater than or equal to {ge}",
    "less_than": "{given} is not less than {lt}",
    "less_than_equal": "{given} is not less than or equal to {le}",
    "too_short": "holds {actual_length}, at least {min_length} are needed",
    "literal_error": "{given} is not one of {expected}",
    "string_pattern_mismatch": "{given} does not match {pattern}",
    "value_error": "{error}",
    "wrong_kind": "{given} {msg}",
}
_NUMBER: Final = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_PLAIN_KEY: Final = re.compile(r"[\w./:@+<>?-]{1,80}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong, and where. `file` and `key` may be empty where there is none."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)


class RegistryError(Exception):
    """A registry that cannot be used; holds everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join(
            [f"{len(self.problems)} problems in the model registry:", *(f"  - {problem}" for problem in self.problems)]
        )


def key_text(path: KeyPath) -> str:
    """`("a", "b", 0)` → `a.b[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f"{'.' if text else ''}{part if _PLAIN_KEY.fullmatch(part) else shown(part)}"
    return text


def shown(value: object) -> str:
    """A value as it would stand in YAML, cut to a readable length."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}…"


def closest(word: str, known: Iterable[str]) -> str:
    """` Did you mean …?` as the end of a message, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def problems_of(error: ValidationError, data: object) -> list[tuple[KeyPath, str]]:
    """Key path and message of everything pydantic found wrong with the data of one file."""
    return [(_key_path(details, data), _message(details)) for details in error.errors(include_url=False)]


def _key_path(details: ErrorDetails, data: object) -> KeyPath:
    """The location without pydantic's union tags: only steps that the data can follow, then a missing key."""
    path: list[str | int] = []
    cursor = data
    for part in details["loc"]:
        below = value_under(cursor, part)
        if below is not ABSENT:
            cursor = below
            path.append(part)
    if details["type"] == "missing":
        path.append(details["loc"][-1])
    if details["type"].startswith("union_tag"):
        path.append("type")
    return tuple(path)


def _message(details: ErrorDetails) -> str:
    type_, given = details["type"], details["input"]
    if type_ == "extra_forbidden":
        return _unknown_key(details["loc"])
    if type_.startswith("union_tag"):
        return _unknown_initializer(given)
    template = _MESSAGES.get(type_)
    if template is None:
        return f"{shown(given)}: {details['msg']}"
    context: dict[str, Any] = dict(details.get("ctx", {}))
    message = template.format_map({"given": shown(given), "msg": details["msg"], **context})
    return f"{message}{_hint(type_, given)}"


def _unknown_key(location: Sequence[str | int]) -> str:
    key = str(location[-1])
    sections = sections_at(location[:-1])
    known = keys_of(sections)
    if key in known:
        others = " and ".join(name for name in known[key] if name != key)
        return f"is another name of {others}, which is given too; keep one"
    owner = " and ".join(filter(None, map(type_of, sections)))
    listed = f"; known {f'to {owner}' if owner else 'here'}: {', '.join(known)}"
    return f"unknown key{closest(key, known)}{listed if owner or not closest(key, known) else ''}"


def _unknown_initializer(given: object) -> str:
    known = [initializer.__name__ for initializer in INITIALIZERS]
    type_ = given.get("type") if isinstance(given, Mapping) else None
    if type_ is None:
        return f"is required: one of {', '.join(known)}"
    return f"{shown(type_)} is not one of the known initializers ({', '.join(known)}){closest(str(type_), known)}"


def _hint(type_: str, given: object) -> str:
    if given is None:
        return "; remove the key or give it a value"
    if type_ in ("int_type", "float_type") and isinstance(given, str) and _NUMBER.fullmatch(given):
        return " but text; write it without quotes and leading zeros"
    if type_ == "string_type" and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if type_ == "bool_type" and isinstance(given, str):
        return "; write true or false, without quotes"
    return ""
