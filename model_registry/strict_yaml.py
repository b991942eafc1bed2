"""Reads one YAML file into plain data, refusing everything that surprises or attacks.

Builds dicts, lists and scalars from parser events itself, so nothing of YAML's object machinery exists here: no
anchors, aliases, merge keys, tags, directives, further documents, duplicate keys or keys that are not text. Scalars
follow YAML 1.2's core schema: `on`, `yes`, `0777` and `12:30` are text, `1e3` is a float. Size and depth are bounded.
Refusals are collected with their key path, not raised. Knows nothing of models; called by the loader.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 32

KeyPath = tuple[str | int, ...]
ABSENT: Final = object()
"""What `value_under` and `value_at` give where there is no value; null is a value."""

_Parser: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT: Final = re.compile(r"(?P<sign>[-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_INT_DIGITS: Final = 18  # such integers fit 64 bits


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing the file must not contain."""

    path: KeyPath
    message: str


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """What a file holds. Data is usable beside refusals unless `is_complete` is false."""

    data: object
    refusals: tuple[Refusal, ...] = ()
    is_complete: bool = True


def value_under(data: object, part: str | int) -> object:
    """The value one step below a mapping or list, or `ABSENT`."""
    if isinstance(data, dict):
        return data.get(part, ABSENT)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return ABSENT


def value_at(data: object, path: KeyPath) -> object:
    """The value at a key path, or `ABSENT`."""
    for part in path:
        data = value_under(data, part)
    return data


def read_yaml(path: Path) -> YamlDocument:
    """Reads a file; whatever is wrong with it, from a missing file to a duplicate key, becomes a refusal."""
    try:
        return parse_yaml(_read_text(path))
    except OSError as error:
        return _unreadable(f"cannot be read: {error.strerror or error}")
    except ValueError as error:
        return _unreadable(str(error))


def parse_yaml(text: str) -> YamlDocument:
    """The same for text that is already there."""
    builder = _Builder(text)
    try:
        data = builder.build()
    except yaml.YAMLError as error:
        return _unreadable(_syntax_message(error))
    except _TooDeepError as error:
        return _unreadable(str(error))
    return YamlDocument(data, tuple(builder.refusals), builder.is_complete)


class _TooDeepError(Exception):
    pass


def _unreadable(message: str) -> YamlDocument:
    return YamlDocument(None, (Refusal((), message),), is_complete=False)


def _read_text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes; a registry file has a few thousand")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}") from None


def _syntax_message(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"is not YAML: {' '.join(str(error).split())}"
    what = " ".join(part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    return f"is not YAML: line {mark.line + 1}, column {mark.column + 1}: {what}"


def _line(event: yaml.Event) -> int:
    return 0 if event.start_mark is None else event.start_mark.line + 1


class _Builder:
    """Turns the events of one text into data, in one pass and without look-ahead."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=_Parser))
        self.refusals: list[Refusal] = []
        self.is_complete = True

    def build(self) -> object:
        data: object = None
        documents = (event for event in self._events if isinstance(event, yaml.DocumentStartEvent))
        for number, start in enumerate(documents):
            if number > 0:
                self._refuse((), f"line {_line(start)}: a second document starts; a file holds one", is_fatal=True)
                return data
            if start.version or start.tags:
                self._refuse((), "directives (%YAML, %TAG) are not allowed", is_fatal=True)
            data = self._value(next(self._events), (), 0)
        if data is None and not self.refusals:
            self._refuse((), "is empty; a registry file holds at least `model_config`", is_fatal=True)
        return data

    def _refuse(self, path: KeyPath, message: str, *, is_fatal: bool = False) -> None:
        self.refusals.append(Refusal(path, message))
        self.is_complete = self.is_complete and not is_fatal

    def _value(self, event: yaml.Event, path: KeyPath, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise _TooDeepError(f"line {_line(event)}: nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            self._refuse(path, f"line {_line(event)}: alias *{event.anchor} is not allowed", is_fatal=True)
            return None
        self._refuse_decoration(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items = enumerate(self._until(yaml.SequenceEndEvent))
            return [self._value(item, (*path, index), depth + 1) for index, item in items]
        return self._mapping(path, depth)

    def _refuse_decoration(self, event: yaml.Event, path: KeyPath) -> None:
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            message = f"line {_line(event)}: anchor &{event.anchor} is not allowed; share settings with `extends`"
            self._refuse(path, message, is_fatal=True)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._refuse(path, f"line {_line(event)}: tag {event.tag} is not allowed; write the plain value")

    def _until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield event

    def _mapping(self, path: KeyPath, depth: int) -> dict[str, object]:
        mapping: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_event in self._until(yaml.MappingEndEvent):
            key = self._key(key_event, path, depth)
            value = self._value(next(self._events), (*path, "?" if key is None else key), depth + 1)
            if key is None:
                continue
            if key in lines:
                message = f"line {_line(key_event)}: the key is given twice, first in line {lines[key]}; keep one"
                self._refuse((*path, key), message)
                continue
            mapping[key], lines[key] = value, _line(key_event)
        return mapping

    def _key(self, event: yaml.Event, path: KeyPath, depth: int) -> str | None:
        key = self._value(event, (*path, "?"), depth + 1)
        if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            message = f"line {_line(event)}: merge keys are not allowed; share settings with `extends`"
            self._refuse((*path, "<<"), message, is_fatal=True)
            return None
        if isinstance(key, str):
            return key
        shown = event.value if isinstance(event, yaml.ScalarEvent) else "a list or mapping"
        self._refuse(path, f"line {_line(event)}: the key {shown} is not text; put it in quotes")
        return None

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> object:
        text: str = event.value
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(path, f"line {_line(event)}: half a surrogate pair is not text", is_fatal=True)
            return None
        is_plain = event.implicit[0] and event.tag is None
        try:
            return _resolved(text) if is_plain else text
        except OverflowError:
            self._refuse(path, f"line {_line(event)}: {text[:40]} is too large a number", is_fatal=True)
            return None


def _resolved(text: str) -> object:
    """The value of an unquoted scalar."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > _MAX_INT_DIGITS:
            raise OverflowError
        return int(text)
    if special := _SPECIAL_FLOAT.fullmatch(text):
        return math.nan if special["sign"] is None else float(f"{special['sign']}inf")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise OverflowError
        return number
    return text
