"""The stop matcher against a naive reading of the whole text, and its promises one by one."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.stops import StopMatcher


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """The stop complete first wins; of several complete at once, the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - len(max(complete, key=len))], True
    return text, False


def feed_in_pieces(text: str, stops: list[str], cuts: list[int]) -> tuple[str, bool, list[str]]:
    matcher = StopMatcher(stops, "")
    shown: list[str] = []
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(borders):
        passed, stopped = matcher.feed(text[start:end])
        shown.append(passed)
        assert (matcher.found is not None) == stopped
        if stopped:
            assert matcher.found in stops
            assert text.startswith("".join(shown) + str(matcher.found))
            return "".join(shown), True, shown
    return "".join(shown) + matcher.flush(), False, shown


@given(
    st.text("abä", max_size=40),
    st.lists(st.text("abä", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 100), max_size=10),
)
def test_matches_what_a_naive_reading_finds_however_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    shown, stopped, _ = feed_in_pieces(text, stops, cuts)
    assert (shown, stopped) == naive(text, stops)


@given(st.text("abä", max_size=30), st.lists(st.text("abä", min_size=1, max_size=5), min_size=1, max_size=3))
def test_nothing_shown_is_ever_taken_back(text: str, stops: list[str]) -> None:
    expected, _ = naive(text, stops)
    matcher = StopMatcher(stops, "")
    shown = ""
    for character in text:
        passed, stopped = matcher.feed(character)
        shown += passed
        assert expected.startswith(shown)
        if stopped:
            break


def test_a_possible_beginning_is_held_back_until_it_is_known() -> None:
    matcher = StopMatcher(["### End"], "")
    assert matcher.feed("text ##") == ("text ", False)
    assert matcher.feed("# E") == ("", False)
    assert matcher.feed("lse") == ("### Else", False)


def test_held_text_is_returned_when_the_stream_ends() -> None:
    matcher = StopMatcher(["END"], "")
    assert matcher.feed("the EN") == ("the ", False)
    assert matcher.flush() == "EN"


def test_a_stop_at_the_very_beginning_leaves_nothing() -> None:
    assert StopMatcher(["abc"], "").feed("abcdef") == ("", True)


def test_a_stop_that_is_complete_first_wins_over_one_that_began_earlier() -> None:
    assert StopMatcher(["abcd", "bc"], "").feed("xabcd") == ("xa", True)


def test_of_stops_complete_at_once_the_longest_is_cut() -> None:
    assert StopMatcher(["bc", "abc"], "").feed("xabc") == ("x", True)


def test_token_sequences_match_across_feeds() -> None:
    matcher = StopMatcher([(5, 6), (7,)], ())
    assert matcher.feed((1, 5)) == ((1,), False)
    assert matcher.feed((5,)) == ((5,), False)
    assert matcher.feed((6,)) == ((), True)


def test_without_stops_everything_passes_at_once() -> None:
    assert StopMatcher([], "").feed("anything") == ("anything", False)


@pytest.mark.parametrize("stop", ["a" * 255 + "b", "ab" * 128])
def test_a_hostile_stop_costs_time_linear_in_the_text(stop: str) -> None:
    text = "a" * 100_000
    matcher = StopMatcher([stop] * 4, "")
    started = time.perf_counter()
    matcher.feed(text)
    assert time.perf_counter() - started < 2
