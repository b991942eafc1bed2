"""Reasoning apart from the answer, in text that comes in any pieces."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import Answer, PlainReader
from gateway.reasoning_reader import ReasoningReader
from gateway.tool_reader import ToolReader
from model_registry.tool_formats import REASONING_SYNTAX, TOOL_SYNTAX, ReasoningFormat, ToolFormat

THINK = REASONING_SYNTAX[ReasoningFormat.THINK]


def answer_of(*pieces: str) -> Answer:
    reader = ReasoningReader(THINK, PlainReader())
    answer = Answer()
    for piece in pieces:
        answer += reader.feed(piece)
    return answer + reader.finish()


CASES = [
    ("<think>\nhm\n</think>\n\nyes", "hm", "yes"),
    ("\n<think>a b</think>c", "a b", "c"),
    ("<think>\n\n</think>\n\nyes ", "", "yes "),
    ("<think>hm \n", "hm", ""),
    ("<think>hm</think>", "hm", ""),
    ("<think>hm</thi", "hm</thi", ""),
    ("yes", "", "yes"),
    (" \n", "", " \n"),
    ("<thi", "", "<thi"),
    ("", "", ""),
    ("yes <think>hm</think>", "", "yes <think>hm</think>"),
    ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
]


@pytest.mark.parametrize(("text", "reasoning", "content"), CASES)
def test_what_is_between_the_marks_at_the_beginning_is_reasoning(text: str, reasoning: str, content: str) -> None:
    assert answer_of(text) == Answer(content, reasoning)


PIECES = st.lists(st.sampled_from(("<think>", "</think>", "<", "</thi", "a", " ", "\n")), max_size=10).map("".join)


@given(PIECES | st.sampled_from([text for text, _, _ in CASES]), st.data())
def test_any_cutting_of_the_text_gives_the_same_answer(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert answer_of(*(text[start:end] for start, end in pairwise([0, *cuts, len(text)]))) == answer_of(text)
    assert answer_of(*text) == answer_of(text)


def test_reasoning_is_told_as_it_comes() -> None:
    reader = ReasoningReader(THINK, PlainReader())
    told = [reader.feed(piece).reasoning for piece in ("<think>", "\na", " b", "\n", "</", "think>")]
    assert told == ["", "a", " b", "", "", ""]


def test_calls_come_after_the_reasoning_and_none_is_inside() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for text, num_calls in ((f"<think>{call}</think>", 0), (f"<think>hm</think>\n{call}", 1)):
        reader = ReasoningReader(THINK, ToolReader(TOOL_SYNTAX[ToolFormat.HERMES], {"f"}))
        answer = Answer() + reader.feed(text) + reader.finish()
        assert (answer.content, len(answer.tool_calls), reader.has_tool_calls) == ("", num_calls, bool(num_calls))


@pytest.mark.parametrize(
    ("begun", "token"),
    [
        ("", "\n"),
        ("<think>", "\n"),
        ("<think>a", "\n"),
        ("<think>a</think>", "\n"),
        ("<think>", "word "),
        ("", "<think>"),
    ],
)
def test_what_a_token_costs_does_not_grow_with_the_answer(begun: str, token: str) -> None:
    for pieces in ([token] * 10_000, [token * 10_000]):
        reader = ReasoningReader(THINK, PlainReader())
        started = time.process_time()
        for piece in (begun, *pieces):
            reader.feed(piece)
        reader.finish()
        assert time.process_time() - started < 0.3
