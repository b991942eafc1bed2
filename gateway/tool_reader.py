"""The calls in a model's answer, found while it comes: their names at once, their arguments as they are written.

A call whose beginning is not one is content, mark and all. Once its name is told it stays a call: what a model makes
of its arguments, or how far it gets with them, is told as it is. Each method reads one part of the text and pauses
wherever it needs more; all decide by the text alone, never by its pieces, and take what they have looked at.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Generator
from typing import Any, Final

from gateway.answer import AnswerDelta, ToolCallDelta, one_for_each_call
from gateway.marks import STRIDE, ComingText, find_mark
from model_registry.tool_formats import CallForm, ToolSyntax

_STRING: Final = r'"(?:[^"\\]|\\.){0,256}"'
_SPACE: Final = r"\s{0,64}"
"""Bounded, as strings are: what a pattern waits for is looked at again with every piece."""
_HEAD: Final = re.compile(
    rf'\{{{_SPACE}"name"{_SPACE}:{_SPACE}({_STRING}){_SPACE},'
    rf'{_SPACE}"(?:arguments|parameters)"{_SPACE}:{_SPACE}(?=\{{)'
)
"""A call up to its arguments, as nearly all models write it."""
_NO_OBJECT: Final = re.compile(rf'\{{{_SPACE}[^\s"]')
_FIRST_KEY: Final = re.compile(rf"\{{{_SPACE}({_STRING}){_SPACE}:")
_KEYS: Final = frozenset(('"name"', '"arguments"', '"parameters"', '"type"', '"id"', '"function"'))
_ASIDE: Final = rf'"(?:type|id)"{_SPACE}:{_SPACE}(?:{_STRING}|[\w.+-]{{1,64}}){_SPACE},{_SPACE}'
_KEY_BEHIND_ASIDES: Final = re.compile(rf"\{{{_SPACE}(?:{_ASIDE}){{1,2}}({_STRING}){_SPACE}:")
_NAME: Final = re.compile(
    rf'\{{{_SPACE}(?:{_ASIDE}){{0,2}}"name"{_SPACE}:{_SPACE}(?:({_STRING})|"(?:[^"\\]|\\.){{257}}|[^\s"])'
)
"""A name that is complete, or is none."""
_NAMED: Final = re.compile(
    rf"([\w.-]{{1,128}}){_SPACE}(?:\[CALL_ID\]{_SPACE}[\w-]{{1,64}}{_SPACE})?(?:\[ARGS\])?{_SPACE}(?=\{{)"
)
_BEFORE_ARGUMENTS: Final = re.compile(r"[\s\w.\-\[\]]{0,512}")
"""What `_NAMED` may still become."""
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
        self._text = ComingText()
        self._steps = self._read_answer()
        self._spaces: list[str] = []
        """At the end of the content so far; content only when more follows, or when there are no calls."""
        self._opened: list[str] = []
        """What has been taken of a call, or of what is between calls, that may not be one."""
        self._num_calls = 0
        self._content: list[str] = []
        self._calls: list[ToolCallDelta] = []

    @property
    def has_tool_calls(self) -> bool:
        return self._num_calls > 0

    def feed(self, text: str) -> AnswerDelta:
        self._text.add(text)
        next(self._steps)
        delta = AnswerDelta("".join(self._content), "", one_for_each_call(self._calls))
        self._content, self._calls = [], []
        return delta

    def finish(self) -> AnswerDelta:
        """What was held back is content where there are no calls; behind calls, it is what is left of a further one."""
        held = "" if self._num_calls else "".join((*self._spaces, *self._opened, self._text.take_all()))
        return AnswerDelta(held)

    def _read_answer(self) -> Generator[None, None, None]:
        if self._syntax.is_bare:
            yield from self._read_bare(is_marked=False)
        while True:
            yield from self._read_text()
            yield from self._read_opened()

    # Outside of calls

    def _read_text(self) -> Generator[None, None, None]:
        """To behind the mark that opens a call."""
        while True:
            position, is_opened = find_mark(self._text.ahead(), self._syntax.opening)
            self._say(self._text.take(position))
            if is_opened:
                return self._hold(len(self._syntax.opening))
            if not position:
                yield

    def _say(self, text: str) -> None:
        said = text.rstrip()
        if said:
            self._content += (*self._spaces, said)
            self._spaces.clear()
        self._spaces.append(text[len(said) :])

    def _hold(self, num_chars: int) -> None:
        self._opened.append(self._text.take(num_chars))

    def _give_up(self) -> bool:
        """It is no call."""
        self._say("".join(self._opened))
        self._opened.clear()
        return False

    def _read_next_char(self) -> Generator[None, None, str]:
        """To the next that is no white space."""
        while True:
            self._opened.append(self._text.take_spaces())
            if char := self._text.ahead(1):
                return char
            yield

    # From the mark on, by the form of calls

    def _read_opened(self) -> Generator[None, None, None]:
        if self._syntax.is_bare:
            yield from self._read_bare(is_marked=True)
        elif self._syntax.form is CallForm.OBJECT:
            if (yield from self._read_object(is_marked=True)):
                yield from self._read_closing()
        else:
            yield from self._read_listed_or_named()

    def _read_bare(self, *, is_marked: bool) -> Generator[None, None, None]:
        """Calls that may follow each other without a mark."""
        while (yield from self._read_object(is_marked=is_marked)):
            is_marked = False
            if (yield from self._read_next_char()) == ";":
                self._hold(1)

    def _read_closing(self) -> Generator[None, None, None]:
        closing = self._syntax.closing
        yield from self._read_next_char()
        while (begun := self._text.ahead(len(closing))) != closing:
            if not closing.startswith(begun):
                self._give_up()
                return
            yield
        self._text.take(len(closing))
        self._opened.clear()

    def _read_listed_or_named(self) -> Generator[None, None, None]:
        char = yield from self._read_next_char()
        if char == "[":
            self._hold(1)
            yield from self._read_list()
        elif char == "{":
            yield from self._read_object(is_marked=True)
        else:
            yield from self._read_named()

    def _read_list(self) -> Generator[None, None, None]:
        while (yield from self._read_object(is_marked=True)):
            char = yield from self._read_next_char()
            if char == "]":
                self._text.take(1)
                self._opened.clear()
                return
            if char != ",":
                self._give_up()
                return
            self._hold(1)

    def _read_named(self) -> Generator[None, None, None]:
        ahead, is_all = self._ahead_of_mark()
        while not (head := _NAMED.match(ahead)):
            if is_all or not _BEFORE_ARGUMENTS.fullmatch(ahead):
                self._give_up()
                return
            yield
            ahead, is_all = self._ahead_of_mark()
        self._text.take(head.end())
        self._begin_call(head[1])
        yield from self._read_value(_Nesting())

    # A call that is an object

    def _read_object(self, *, is_marked: bool) -> Generator[None, None, bool]:
        """To behind it; false where it is no call."""
        if (yield from self._read_next_char()) != "{":
            return self._give_up()
        nesting, num_seen = _Nesting(), 0
        while True:
            ahead, is_all = self._ahead_of_mark()
            if head := _HEAD.match(ahead):
                return (yield from self._read_call(head, is_marked=is_marked))
            if self._is_no_call(ahead, is_marked=is_marked):
                return self._give_up()
            if is_all or nesting.end_in(ahead, num_seen) is not None:
                return (yield from self._read_whole(is_marked=is_marked))
            num_seen = len(ahead)
            yield

    def _ahead_of_mark(self) -> tuple[str, bool]:
        """What comes before the next mark that opens a call, and whether it is all that a decision gets to see."""
        ahead = self._text.ahead()
        position, is_opened = find_mark(ahead, self._syntax.opening)
        return ahead[:position], is_opened or len(ahead) == STRIDE

    def _is_no_call(self, begun: str, *, is_marked: bool) -> bool:
        first = _FIRST_KEY.match(begun)
        if _NO_OBJECT.match(begun) or (first and first[1] not in _KEYS):
            return True
        return not is_marked and self._is_other_json(begun)

    def _is_other_json(self, begun: str) -> bool:
        """Of an object without a mark: an answer in JSON should not wait for its last brace."""
        key, name = _KEY_BEHIND_ASIDES.match(begun), _NAME.match(begun)
        if key and key[1] not in _KEYS:
            return True
        return name is not None and not self._is_function(_loaded(name[1] or ""), is_marked=False)

    def _read_call(self, head: re.Match[str], *, is_marked: bool) -> Generator[None, None, bool]:
        name = _loaded(head[1])
        if not self._is_function(name, is_marked=is_marked):
            return self._give_up()
        self._text.take(head.end())
        self._begin_call(name)
        yield from self._read_value(_Nesting())
        if (yield from self._read_next_char()) in "},":
            self._opened.clear()
            yield from self._read_value(_Nesting(depth=1), is_told=False)
        return True

    def _read_whole(self, *, is_marked: bool) -> Generator[None, None, bool]:
        """A call whose keys are in another order, or whose arguments are no object. A mark in it begins another one."""
        nesting, num_opened = _Nesting(), len(self._opened)
        while True:
            ahead, is_all = self._ahead_of_mark()
            end = nesting.end_in(ahead)
            self._hold(len(ahead) if end is None else end)
            if end is not None:
                return self._tell_whole("".join(self._opened[num_opened:]), is_marked=is_marked)
            if not ahead and is_all:
                return self._give_up()
            if not ahead:
                yield

    def _tell_whole(self, text: str, *, is_marked: bool) -> bool:
        call = _call_in(text)
        if call is None or not self._is_function(call[0], is_marked=is_marked):
            return self._give_up()
        self._begin_call(call[0])
        self._tell(ToolCallDelta(self._num_calls - 1, arguments=call[1]))
        return True

    def _is_function(self, name: Any, *, is_marked: bool) -> bool:
        if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
            return False
        return is_marked or name in self._names

    # What is told

    def _begin_call(self, name: str) -> None:
        self._num_calls += 1
        self._opened.clear()
        self._tell(ToolCallDelta(self._num_calls - 1, self._new_id(), name))

    def _read_value(self, nesting: _Nesting, *, is_told: bool = True) -> Generator[None, None, None]:
        """To behind it, as far as it is one; of arguments, each piece is told. What other keys say is not."""
        while True:
            ahead = self._text.ahead()
            end = nesting.end_in(ahead, stop=self._syntax.closing[:1])
            taken = self._text.take(len(ahead) if end is None else end)
            if taken and is_told:
                self._tell(ToolCallDelta(self._num_calls - 1, arguments=taken))
            if end is not None:
                return
            if not ahead:
                yield

    def _tell(self, delta: ToolCallDelta) -> None:
        if self._parallel or delta.index == 0:
            self._calls.append(delta)


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
