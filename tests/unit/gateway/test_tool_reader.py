"""Calls found in text that comes in any pieces, in every format; what is no call is content, and nothing is lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import Answer, AnswerDelta
from gateway.marks import STRIDE
from gateway.tool_reader import ToolReader, new_call_id
from model_registry.tool_formats import TOOL_SYNTAX, ToolFormat

NAMES = frozenset(("weather", "time"))
HERMES, LLAMA = ToolFormat.HERMES, ToolFormat.LLAMA
MISTRAL, MISTRAL_ARGS, GRANITE = ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS, ToolFormat.GRANITE
FORMATS = (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, GRANITE)


def numbered() -> Callable[[], str]:
    numbers = count()
    return lambda: f"id{next(numbers)}"


def deltas_of(format_: ToolFormat, *pieces: str, parallel: bool = True) -> list[AnswerDelta]:
    reader = ToolReader(TOOL_SYNTAX[format_], NAMES, parallel=parallel, new_id=numbered())
    return [*(reader.feed(piece) for piece in pieces), reader.finish()]


def answer_of(format_: ToolFormat, *pieces: str, parallel: bool = True) -> Answer:
    answer = Answer()
    for delta in deltas_of(format_, *pieces, parallel=parallel):
        answer += delta
    return answer


def told(format_: ToolFormat, text: str, *, parallel: bool = True) -> tuple[str, list[tuple[str, str]]]:
    answer = answer_of(format_, text, parallel=parallel)
    return answer.content, [(call.name, call.arguments) for call in answer.tool_calls]


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ONE = hermes("weather", '{"city": "Köln"}')
CALLS = [
    (HERMES, ONE, "", [("weather", '{"city": "Köln"}')]),
    (HERMES, f"\n{ONE}\n{hermes('time', '{}')}\n", "", [("weather", '{"city": "Köln"}'), ("time", "{}")]),
    (HERMES, f"Let me look.\n{ONE}", "Let me look.", [("weather", '{"city": "Köln"}')]),
    (HERMES, f"Well.\n{ONE}\nDone.", "Well.\n\nDone.", [("weather", '{"city": "Köln"}')]),
    (HERMES, ONE.replace("\n", ""), "", [("weather", '{"city": "Köln"}')]),
    (HERMES, ONE.removesuffix("</tool_call>"), "", [("weather", '{"city": "Köln"}')]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "time"}</tool_call>', "", [("time", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
    (HERMES, '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("time", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "time", "parameters": {}}</tool_call>', "", [("time", "{}")]),
    (HERMES, '<tool_call>{"id": "x", "name": "time", "arguments": null}</tool_call>!', "!", [("time", "{}")]),
    (HERMES, '<tool_call>{"type": "function", "function": {"name": "time", "arguments": {}}}</tool_call>', "",
     [("time", "{}")]),
    (HERMES, '<tool_call>{"name": "time", "arguments": {"a": "\\ud800"}, "x": 1}</tool_call>', "",
     [("time", '{"a": "\\ud800"}')]),
    (HERMES, '<tool_call>{"arguments": {"a": "\\ud800"}, "name": "time"}</tool_call>', "",
     [("time", '{"a": "\\ud800"}')]),
    (HERMES, hermes("unknown", "{}"), "", [("unknown", "{}")]),
    (HERMES, hermes("time", '{"a": "</tool_call> \\" }"}'), "", [("time", '{"a": "</tool_call> \\" }"}')]),
    (HERMES, '<tool_call>{"name": "time", "arguments": {"a": 1</tool_call> and on', " and on",
     [("time", '{"a": 1')]),
    (LLAMA, '{"name": "time", "parameters": {"a": 1}}', "", [("time", '{"a": 1}')]),
    (LLAMA, ' {"name": "time", "parameters": {}}; {"name": "weather", "parameters": {}}', "",
     [("time", "{}"), ("weather", "{}")]),
    (LLAMA, '<|python_tag|>{"name": "unknown", "parameters": {}}', "", [("unknown", "{}")]),
    (LLAMA, 'Hm. <|python_tag|>{"type": "function", "name": "time", "parameters": {}}', "Hm.", [("time", "{}")]),
    (MISTRAL, '[TOOL_CALLS] [{"name": "time", "arguments": {"a": [1]}, "id": "abc"}, '
              '{"name": "weather", "arguments": {}}]', "", [("time", '{"a": [1]}'), ("weather", "{}")]),
    (MISTRAL, 'Hm[TOOL_CALLS][{"arguments": {}, "name": "time"}] so', "Hm so", [("time", "{}")]),
    (MISTRAL, '[TOOL_CALLS]time{"a": 1}', "", [("time", '{"a": 1}')]),
    (MISTRAL_ARGS, '[TOOL_CALLS]time[ARGS]{"a": {}}[TOOL_CALLS]weather[CALL_ID]abc123[ARGS]{}', "",
     [("time", '{"a": {}}'), ("weather", "{}")]),
    (MISTRAL_ARGS, '[TOOL_CALLS][{"name": "time", "arguments": {}}]', "", [("time", "{}")]),
    (GRANITE, '<|tool_call|>[{"name": "time", "arguments": {}}]', "", [("time", "{}")]),
    (GRANITE, '<|tool_call|>{"name": "time", "arguments": {}}', "", [("time", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "text", "content", "calls"), CALLS)
def test_calls_are_told_by_name_and_arguments(
    format_: ToolFormat, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert told(format_, text) == (content, calls)


NO_CALLS = [
    (HERMES, "just text, <b>bold</b> and <tool_"),
    (HERMES, "  spaces around \n"),
    (HERMES, " \n"),
    (HERMES, "<tool_call>"),
    (HERMES, "<tool_call>get the weather</tool_call>"),
    (HERMES, '<tool_call>{"city": "Köln"}</tool_call>'),
    (HERMES, '<tool_call>{}</tool_call>'),
    (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "a\\u0000b", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "time", "arguments": "\\ud800"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "time", "arguments": 7}</tool_call>'),
    (HERMES, '<tool_call>\n{"name": "ti'),
    (HERMES, '<tool_call>\n{"name": "time", "argu'),
    (HERMES, '<tool_call>' + '[' * 5000),
    (HERMES, '<tool_call>{"name": ' + '[' * 5000),
    (LLAMA, '{"name": "Bob", "parameters": {}}'),
    (LLAMA, '{"answer": 42}'),
    (LLAMA, 'It is {"name": "time", "parameters": {}}'),
    (LLAMA, '<|python_tag|>brave_search.call(query="x")'),
    (MISTRAL, "[TOOL_CALLS] []"),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, "[TOOL_CALLS] time and again"),
    (MISTRAL_ARGS, "[TOOL_CALLS]time[ARGS]"),
    (MISTRAL_ARGS, "[TOOL_CALLS]time[ARGS]7"),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "text"), NO_CALLS)
def test_what_is_no_call_is_content_to_the_last_character(format_: ToolFormat, text: str) -> None:
    assert told(format_, text) == (text, [])


def test_a_good_call_behind_a_bad_one_is_found() -> None:
    content, calls = told(HERMES, f"<tool_call>oops</tool_call>{ONE}")
    assert (content, len(calls)) == ("<tool_call>oops</tool_call>", 1)


def test_a_call_that_is_cut_is_told_as_far_as_it_came() -> None:
    assert told(HERMES, '<tool_call>{"name": "time", "arguments": {"zone": "Eu') == ("", [("time", '{"zone": "Eu')])


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        (HERMES, hermes("time", "{}").removesuffix("_call>")),
        (HERMES, hermes("time", "{}") + "\n<tool_c"),
        (HERMES, hermes("time", "{}") + '\n<tool_call>\n{"na'),
        (HERMES, '<tool_call>{"name": "time", "arguments": {}, "id": "a'),
        (LLAMA, '{"name": "time", "parameters": {}}; '),
        (LLAMA, '{"name": "time", "parameters": {}}; {"na'),
        (MISTRAL, '[TOOL_CALLS][{"name": "time", "arguments": {}}, '),
        (MISTRAL, '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"na'),
        (MISTRAL_ARGS, "[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]weather[AR"),
        (GRANITE, '<|tool_call|>[{"name": "time", "arguments": {}}, {"na'),
    ],
)
def test_of_an_answer_that_is_cut_behind_a_call_no_mark_nor_separator_is_content(
    format_: ToolFormat, text: str
) -> None:
    assert told(format_, text) == ("", [("time", "{}")])


def test_what_is_between_a_call_and_text_is_content() -> None:
    assert told(LLAMA, '{"name": "time", "parameters": {}}; or not') == ("; or not", [("time", "{}")])
    assert told(HERMES, '<tool_call>{"name": "time", "arguments": {}} </tool') == ("", [("time", "{}")])
    assert told(HERMES, '<tool_call>{"name": "time", "arguments": {}}\n</tools>') == ("\n</tools>", [("time", "{}")])


def test_a_call_that_is_never_closed_does_not_hide_the_next() -> None:
    content, calls = told(HERMES, f'<tool_call>{{"arguments": {{"a": "b}}\n</tool_call>\n{ONE}')
    assert content == '<tool_call>{"arguments": {"a": "b}\n</tool_call>'
    assert calls == [("weather", '{"city": "Köln"}')]


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        ('{"name": "Ada', '"'),
        ('{"name": ', "7"),
        ('{"name": ', "["),
        ('{"name": "' + "a" * 256, "a"),
        ('{"id": 7, "name": "Ada', '"'),
        ('{"type": "person", "age"', ":"),
    ],
)
def test_an_answer_in_json_is_told_as_soon_as_it_can_be_no_call(begun: str, more: str) -> None:
    assert [delta.content for delta in deltas_of(LLAMA, begun, more, "...")] == ["", begun + more, "...", ""]


def test_the_name_is_told_at_once_and_the_arguments_as_they_come() -> None:
    pieces = ['<tool_call>\n{"name": "time", ', '"arguments": {', '"zone": ', '"CET"', "}}", "\n</tool_call>"]
    deltas = [delta.tool_calls for delta in deltas_of(HERMES, *pieces)]
    assert [[(one.index, one.id, one.name, one.arguments) for one in calls] for calls in deltas] == [
        [], [(0, "id0", "time", "{")], [(0, "", "", '"zone": ')], [(0, "", "", '"CET"')], [(0, "", "", "}")], [], [],
    ]  # fmt: skip


def test_text_is_told_at_once_but_for_what_may_become_a_mark() -> None:
    contents = [delta.content for delta in deltas_of(HERMES, "a <tool", "s> b", " <", "tool_call")]
    assert contents == ["a", " <tools> b", "", "", " <tool_call"]


def test_without_parallel_calls_one_is_told() -> None:
    text = ONE + hermes("time", "{}") + "x"
    assert told(HERMES, text, parallel=False) == ("x", [("weather", '{"city": "Köln"}')])


def test_ids_are_openais_and_all_different() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert {len(one) for one in ids} == {len("call_") + 24}


FRAGMENTS = st.sampled_from((
    "<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call|>", "[", "]",
    '{"name": "time", "arguments": ', '{"name": "weather", "parameters": ', '{"a": "x', '"}', "}", "{}", "{", ", ", ";",
    '"id": "1"', "\n", " ", "time", "\\", '"', "é", "{}}", '{"id": 1, ', '{"name": "Ada", ', '"name": "time"', " " * 70,
))  # fmt: skip
TEXTS = st.one_of(
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.sampled_from([text for _, text, *_ in CALLS] + [text for _, text in NO_CALLS if len(text) < 500]),
)


@given(st.sampled_from(ToolFormat), TEXTS, st.booleans(), st.data())
def test_any_cutting_of_the_text_gives_the_same_answer(
    format_: ToolFormat, text: str, parallel: bool, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    whole = answer_of(format_, text, parallel=parallel)
    assert answer_of(format_, *pieces, parallel=parallel) == whole
    assert answer_of(format_, *text, parallel=parallel) == whole


@given(st.sampled_from(ToolFormat), TEXTS)
def test_a_text_without_calls_comes_out_as_it_is(format_: ToolFormat, text: str) -> None:
    answer = answer_of(format_, text)
    assert answer.tool_calls or answer.content == text


@pytest.mark.parametrize("num_chars", range(STRIDE - 15, STRIDE + 2))
@pytest.mark.parametrize("ending", ['", "name": "time"}', '"} <tool_call>{"name": "time", "arguments": {}}'])
def test_where_it_is_looked_at_in_parts_a_long_text_gives_the_same_answer(num_chars: int, ending: str) -> None:
    text = '<tool_call>{"id": "'.ljust(num_chars, "x") + ending
    assert answer_of(HERMES, text) == answer_of(HERMES, *text)
    assert len(answer_of(HERMES, text).tool_calls) == 1


def begun_call(format_: ToolFormat) -> str:
    syntax = TOOL_SYNTAX[format_]
    return f'{syntax.opening}{{"name": "time", "{syntax.arguments_key}": {{'


NUM_TOKENS = 3_000
TEDIOUS = [
    *((format_, begun, "\n") for format_ in (HERMES, LLAMA, MISTRAL) for begun in ("", "MARK", "MARK{", "CALL}}")),
    *((format_, "", "MARK") for format_ in FORMATS),
    *((format_, begun, "word ") for format_ in FORMATS for begun in ("", 'MARK{"arguments": {"a": "', 'CALL"')),
    (HERMES, "", 'MARK{"name": '),
    (HERMES, "CALL}, ", "1, "),
    (LLAMA, '{"arguments": "', "word "),
    (MISTRAL, "MARK[", '{"arguments": {}, "name": "time"}, '),
]


@pytest.mark.parametrize(("format_", "begun", "token"), TEDIOUS)
def test_what_a_token_costs_does_not_grow_with_the_answer(format_: ToolFormat, begun: str, token: str) -> None:
    mark, call = TOOL_SYNTAX[format_].opening, begun_call(format_)
    begun, token = (text.replace("MARK", mark).replace("CALL", call) for text in (begun, token))
    for pieces in ([token] * NUM_TOKENS, [token * NUM_TOKENS]):
        reader = ToolReader(TOOL_SYNTAX[format_], NAMES)
        started = time.process_time()
        for piece in (begun, *pieces):
            reader.feed(piece)
        reader.finish()
        assert time.process_time() - started < 0.15


ARGUMENTS = st.dictionaries(
    st.text(), st.recursive(st.text() | st.integers() | st.none() | st.booleans(), st.lists, max_leaves=5), max_size=4
)


@given(st.sampled_from(FORMATS), st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_whatever_the_arguments_are_they_come_out_as_they_are(format_: ToolFormat, given: list[object]) -> None:
    syntax = TOOL_SYNTAX[format_]
    texts = [json.dumps(one, ensure_ascii=False) for one in given]
    objects = [f'{{"name": "time", "{syntax.arguments_key}": {text}}}' for text in texts]
    written = {
        HERMES: "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects),
        LLAMA: "; ".join(objects),
        MISTRAL_ARGS: "".join(f"[TOOL_CALLS]time[ARGS]{text}" for text in texts),
    }.get(format_, f"{syntax.opening}[{', '.join(objects)}]")
    assert told(format_, written) == ("", [("time", text) for text in texts])
