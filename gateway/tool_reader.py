"""The calls in a model's answer, found while it comes: their names at once, their arguments as they are written.

A call whose beginning is not one is content, mark and all. Once its name is told it stays a call: what a model makes
of its arguments, or how far it gets with them, is told as it is. Each method of a place in the text takes what belongs
there from the buffer, and says whether there is more to read now; all decide by the text alone, never by its pieces.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final

from gateway.answer import AnswerDelta, ToolCallDelta
from gateway.marks import find_mark
from model_registry.tool_formats import CallForm, ToolSyntax

_STRING: Final = r'"(?:[^"\\]|\\.){0,256}"'
_SPACE: Final = r"\s{0,64}"
_HEAD: Final = re.compile(
    rf'{_SPACE}\{{{_SPACE}"name"{_SPACE}:{_SPACE}({_STRING}){_SPACE},'
    rf'{_SPACE}"(?:arguments|parameters)"{_SPACE}:{_SPACE}(?=\{{)'
)
"""A call up to its arguments, as nearly all models write it."""
_NO_OBJECT: Final = re.compile(r'\s*(?:[^\s{]|\{\s*[^\s"])')
_FIRST_KEY: Final = re.compile(rf"{_SPACE}\{{{_SPACE}({_STRING}){_SPACE}:")
_KEYS: Final = frozenset(('"name"', '"arguments"', '"parameters"', '"type"', '"id"', '"function"'))
_NAMED: Final = re.compile(
    rf"{_SPACE}([\w.-]{{1,128}}){_SPACE}(?:\[CALL_ID\]{_SPACE}[\w-]{{1,64}}{_SPACE})?(?:\[ARGS\])?{_SPACE}(?=\{{)"
)
_BEFORE_ARGUMENTS: Final = re.compile(r"[\s\w.\-\[\]]{0,512}")
"""What `_NAMED` may still become."""
_NEXT_BARE: Final = re.compile(r"\s*;?\s*(?=\{)")
_MAYBE_NEXT_BARE: Final = re.compile(r"\s*;?\s*")
_FUNCTION_NAME: Final = re.compile(r"[\w.:/-]{1,128}")


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class ToolReader:
    """Reads one answer."""

    def __init__(
        self,
        syntax: ToolSyntax,
        names: Collection[str],
        *,
        parallel: bool = True,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`names` are the functions there are, which matters where an object without a mark may be a call. Without
        `parallel`, one call is told and later ones are not."""
        self._syntax = syntax
        self._names = names
        self._parallel = parallel
        self._new_id = new_id
        self._place: Callable[[bool], bool] = self._read_beginning if syntax.is_bare else self._read_text
        self._buffer = ""
        self._opened = ""
        """What has been taken from the buffer of a call that may not be one."""
        self._is_marked = False
        self._is_listed = False
        self._is_wrapped = False
        """The arguments are inside an object, behind the name."""
        self._nesting = _Nesting()
        self._num_scanned = 0
        self._skipped = ""
        self._spaces = ""
        """At the end of the content so far; content only when more follows, or when there are no calls."""
        self._num_calls = 0
        self._content: list[str] = []
        self._calls: list[ToolCallDelta] = []

    @property
    def has_tool_calls(self) -> bool:
        return self._num_calls > 0

    def feed(self, text: str) -> AnswerDelta:
        self._buffer += text
        return self._read(ended=False)

    def finish(self) -> AnswerDelta:
        return self._read(ended=True)

    def _read(self, *, ended: bool) -> AnswerDelta:
        while self._place(ended):
            pass
        if ended and not self._num_calls:
            self._content.append(self._spaces)
        delta = AnswerDelta("".join(self._content), "", tuple(self._calls))
        self._content, self._calls = [], []
        return delta

    # Outside of calls

    def _read_beginning(self, ended: bool) -> bool:
        """Of an answer that may be a call without a mark."""
        begun = self._buffer.lstrip()
        if not begun and not ended:
            return False
        if begun.startswith("{"):
            self._open(len(self._buffer) - len(begun), is_marked=False)
        else:
            self._place = self._read_text
        return True

    def _read_text(self, ended: bool) -> bool:
        position, found = find_mark(self._buffer, self._syntax.opening)
        if ended and not found:
            position = len(self._buffer)
        self._say(self._buffer[:position])
        self._buffer = self._buffer[position:]
        if not found:
            return False
        self._open(len(self._syntax.opening), is_marked=True)
        return True

    def _open(self, num_chars: int, *, is_marked: bool) -> None:
        self._opened, self._buffer = self._buffer[:num_chars], self._buffer[num_chars:]
        self._is_marked = is_marked
        if self._syntax.form is CallForm.OBJECT:
            self._begin_object()
        else:
            self._place = self._read_opened

    def _begin_object(self) -> None:
        self._nesting, self._num_scanned = _Nesting(), 0
        self._place = self._read_object

    def _give_up(self) -> bool:
        """It is no call."""
        self._say(self._opened)
        self._is_listed = False
        self._place = self._read_text
        return True

    def _say(self, text: str) -> None:
        text = self._spaces + text
        said = text.rstrip()
        self._spaces = text[len(said) :]
        self._content.append(said)

    # Before the arguments

    def _read_opened(self, ended: bool) -> bool:
        """Behind the mark of a format that has lists, or names outside of objects."""
        begun = self._buffer.lstrip()
        if not begun:
            return self._give_up() if ended else False
        if begun.startswith("["):
            num_taken = len(self._buffer) - len(begun) + 1
            self._opened, self._buffer = self._opened + self._buffer[:num_taken], self._buffer[num_taken:]
            self._is_listed = True
        if begun[0] in "[{":
            self._begin_object()
        else:
            self._place = self._read_name
        return True

    def _read_name(self, ended: bool) -> bool:
        if head := _NAMED.match(self._buffer):
            self._buffer = self._buffer[head.end() :]
            self._begin_call(head[1], is_wrapped=False)
            return True
        return self._give_up() if ended or not _BEFORE_ARGUMENTS.fullmatch(self._buffer) else False

    def _read_object(self, ended: bool) -> bool:
        if head := _HEAD.match(self._buffer):
            name = _loaded(head[1])
            if not self._is_function(name):
                return self._give_up()
            self._buffer = self._buffer[head.end() :]
            self._begin_call(name, is_wrapped=True)
            return True
        first = _FIRST_KEY.match(self._buffer)
        if _NO_OBJECT.match(self._buffer) or (first and first[1] not in _KEYS):
            return self._give_up()
        end = self._nesting.end_in(self._buffer, self._num_scanned)
        self._num_scanned = len(self._buffer)
        if end is None:
            return self._give_up() if ended else False
        return self._read_whole(end)

    def _read_whole(self, end: int) -> bool:
        """A call whose keys are in another order, or whose arguments are no object."""
        call = _call_in(self._buffer[:end])
        if call is None or not self._is_function(call[0]):
            return self._give_up()
        self._buffer = self._buffer[end:]
        self._begin_call(call[0], is_wrapped=True)
        self._tell_arguments(call[1])
        self._place = self._read_after
        return True

    def _is_function(self, name: Any) -> bool:
        if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
            return False
        return self._is_marked or name in self._names

    # A call

    def _begin_call(self, name: str, *, is_wrapped: bool) -> None:
        self._num_calls += 1
        self._is_wrapped = is_wrapped
        self._nesting = _Nesting()
        self._place = self._read_arguments
        self._tell(ToolCallDelta(self._num_calls - 1, self._new_id(), name))

    def _tell_arguments(self, text: str) -> None:
        if text:
            self._tell(ToolCallDelta(self._num_calls - 1, arguments=text))

    def _tell(self, delta: ToolCallDelta) -> None:
        if delta.index and not self._parallel:
            return
        last = self._calls[-1] if self._calls else None
        if last is not None and last.index == delta.index:
            self._calls[-1] = replace(last, arguments=last.arguments + delta.arguments)
        else:
            self._calls.append(delta)

    def _read_arguments(self, ended: bool) -> bool:
        end = self._nesting.end_in(self._buffer, stop=self._syntax.closing[:1])
        self._tell_arguments(self._buffer[:end])
        self._buffer = "" if end is None else self._buffer[end:]
        if end is None:
            return False
        self._place = self._read_rest if self._is_wrapped else self._read_after
        return True

    # Behind the arguments

    def _read_rest(self, ended: bool) -> bool:
        """To the end of the object that they are in; other keys say nothing that is told."""
        begun = self._buffer.lstrip()
        if not begun:
            return False
        if begun.startswith(("}", ",")):
            self._buffer = begun
            self._nesting, self._skipped = _Nesting(depth=1), ""
            self._place = self._skip_rest
        else:
            self._place = self._read_after
        return True

    def _skip_rest(self, ended: bool) -> bool:
        end = self._nesting.end_in(self._buffer, stop=self._syntax.closing[:1])
        self._skipped += self._buffer[:end]
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._place = self._read_after
        elif ended:
            self._say(self._skipped)
        return end is not None

    def _read_after(self, ended: bool) -> bool:
        """To the mark that closes a call, or to the next one."""
        begun = self._buffer.lstrip()
        if self._is_listed:
            return self._read_in_list(begun)
        if self._syntax.is_bare:
            return self._read_behind_bare(ended)
        closing = self._syntax.closing
        if closing.startswith(begun) and begun != closing and not ended:
            return False
        self._buffer = begun.removeprefix(closing) if closing else self._buffer
        self._place = self._read_text
        return True

    def _read_in_list(self, begun: str) -> bool:
        if not begun:
            return False
        if begun.startswith(","):
            self._opened, self._buffer = ",", begun[1:]
            self._begin_object()
        else:
            self._is_listed = False
            self._buffer = begun.removeprefix("]")
            self._place = self._read_text
        return True

    def _read_behind_bare(self, ended: bool) -> bool:
        if between := _NEXT_BARE.match(self._buffer):
            self._open(between.end(), is_marked=False)
            return True
        if _MAYBE_NEXT_BARE.fullmatch(self._buffer) and not ended:
            return False
        self._place = self._read_text
        return True


class _Nesting:
    """Follows a JSON value to its end, by its brackets and strings alone."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._is_escaped = False

    def end_in(self, text: str, start: int = 0, stop: str = "") -> int | None:
        """Behind the bracket that closes the value, or at a `stop` outside of strings, where JSON has none."""
        for position in range(start, len(text)):
            char = text[position]
            if self._in_string:
                self._advance_in_string(char)
            elif char == stop:
                return position
            elif self._advance(char):
                return position + 1
        return None

    def _advance_in_string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False

    def _advance(self, char: str) -> bool:
        if char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth <= 0
        elif char == '"':
            self._in_string = True
        return False


def _loaded(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _call_in(text: str) -> tuple[Any, str] | None:
    """Name and arguments of a call that is an object of whatever order."""
    value = _loaded(text)
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or "name" not in value:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return value["name"], "{}"
    if isinstance(arguments, dict):
        text = json.dumps(arguments, ensure_ascii=False)
        return value["name"], text if _is_text(text) else json.dumps(arguments)
    return (value["name"], arguments) if isinstance(arguments, str) and _is_text(arguments) else None


def _is_text(text: str) -> bool:
    """Whether it can be sent: half a UTF-16 pair, which JSON can write, cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
