"""A mark in text that may go on."""

from __future__ import annotations

import pytest

from gateway.marks import find_mark


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (0, False)),
        ("abc", (3, False)),
        ("ab<t>", (2, True)),
        ("ab<t>cd<t>", (2, True)),
        ("ab<t", (2, False)),
        ("a<<", (2, False)),
        ("<t<", (2, False)),
    ],
)
def test_where_a_mark_is_or_may_come_to_be(text: str, found: tuple[int, bool]) -> None:
    assert find_mark(text, "<t>") == found
