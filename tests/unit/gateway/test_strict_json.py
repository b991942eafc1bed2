"""Only JSON that every reader understands in the same way gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BadJsonError
from gateway.protocol.strict_json import MAX_DEPTH, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@settings(max_examples=settings().max_examples // 3)
@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_whatever_the_standard_library_writes_is_read_as_it_was(value: dict[str, Any], ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a":1,}', "at line 1"),
        (b"{'a':1}", "at line 1"),
        (b'{"a":1} // comment', "Extra data"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b'"text"', "not an object"),
        (b'\xef\xbb\xbf{"a":1}', "line 1"),
        (b'{"a":"\xff"}', "not valid UTF-8 at byte 6"),
        (b'{"a":"\xc0\xaf"}', "not valid UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"a":1,"a":2}', "'a' is given twice"),
        (b'{"x":{"b":1,"c":2,"b":1}}', "'b' is given twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e999}', "out of range"),
        (b'{"a":' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a":"\\ud800"}', "lone surrogate"),
        (b'{"a":[{"b":["\\udcaf"]}]}', "lone surrogate"),
        (b'{"\\udfff":1}', "lone surrogate"),
        (b"[" * 200_000, "nested deeper"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested deeper"),
    ],
)
def test_everything_else_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(BadJsonError) as caught:
        parse_json(body)
    assert reason in caught.value.message
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, None, None)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse_json(b'{"a":"\\ud83d\\ude00"}') == {"a": "😀"}


def test_nesting_is_read_down_to_the_limit() -> None:
    depth = MAX_DEPTH - 1
    assert parse_json(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
