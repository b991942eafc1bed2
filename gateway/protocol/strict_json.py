"""JSON as strict as a public server needs it.

Stricter than the standard library: no duplicate keys, no NaN or infinity, no lone surrogates, no deep nesting, no
endless integers. Knows nothing of what the object means. Called for every request body.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from gateway.errors import BadJsonError, shortened

MAX_DEPTH = 64
MAX_INT_DIGITS = 40
"""Enough for any 64-bit field to be refused by its range instead of by its length."""


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that `body` holds. Raises `BadJsonError`."""
    try:
        value = _decoder.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadJsonError(f"it is not valid UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadJsonError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BadJsonError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise BadJsonError("it is not an object")
    _check_depth(value)
    if b"\\u" in body:
        _check_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadJsonError(f"the key '{shortened(duplicate)}' is given twice")
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise BadJsonError(f"an integer has {len(digits)} digits, more than {MAX_INT_DIGITS}")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadJsonError(f"the number {shortened(digits)} is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise BadJsonError(f"{name} is not a JSON number")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant
)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise BadJsonError(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_surrogates(value: Any) -> None:
    """Half a UTF-16 pair can be written as an escape, but is no character and cannot be sent on."""
    level = [value]
    while level:
        for item in level:
            texts = item if isinstance(item, dict) else [item]
            if any(isinstance(text, str) and not _encodable(text) for text in texts):
                raise BadJsonError("it holds a lone surrogate, which is not a character")
        level = [child for parent in level for child in _children(parent)]


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
