"""What answers with tools have to be: grammars judged by llguidance, and read back by the reader of their format."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.answer import Answer
from gateway.answer_grammar import answer_constraint
from gateway.answer_readers import reader_for
from gateway.errors import InvalidRequestError
from gateway.tool_use import NO_TOOLS, Tool, ToolMode, ToolUse
from model_registry.contract import Constraint, ConstraintKind
from model_registry.tool_formats import AnswerFormat, ReasoningFormat, ToolFormat
from tests.support.grammars import takes

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER, TIME = Tool("weather", None, CITY, strict=True), Tool("time")
BOTH = (WEATHER, TIME)
REQUIRED = ToolUse(ToolMode.REQUIRED, BOTH, BOTH)
AUTO = ToolUse(ToolMode.AUTO, BOTH, BOTH)
PLAIN = AnswerFormat(ToolFormat.HERMES)
THINKING = AnswerFormat(ToolFormat.HERMES, ReasoningFormat.THINK)
FORMATS = list(ToolFormat)


def grammar(use: ToolUse, format_: AnswerFormat = PLAIN, *, is_reasoning: bool | None = False) -> str:
    constraint = answer_constraint(use, format_, None, is_reasoning=is_reasoning)
    assert constraint is not None
    assert constraint.kind is ConstraintKind.GRAMMAR
    return constraint.source


def written(format_: ToolFormat, *calls: tuple[str, str]) -> str:
    """Calls as a model of that format writes them."""
    key = "parameters" if format_ is ToolFormat.LLAMA else "arguments"
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    match format_:
        case ToolFormat.HERMES | ToolFormat.DESCRIBED:
            return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)
        case ToolFormat.LLAMA:
            return "; ".join(objects)
        case ToolFormat.MISTRAL_ARGS:
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)
        case ToolFormat.MISTRAL | ToolFormat.GRANITE:
            mark = "[TOOL_CALLS]" if format_ is ToolFormat.MISTRAL else "<|tool_call|>"
            return f"{mark}[{', '.join(objects)}]"


ONE = ("weather", '{"city": "Köln"}')
TWO = (ONE, ("time", "{}"))


def test_answers_are_free_without_tools_and_with_tools_that_are_not_strict() -> None:
    assert answer_constraint(NO_TOOLS, PLAIN, None, is_reasoning=False) is None
    assert answer_constraint(ToolUse(ToolMode.AUTO, (TIME,), (TIME,)), PLAIN, None, is_reasoning=False) is None


def test_a_strict_tool_may_say_that_names_may_be_any() -> None:
    numbers = {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}
    sum_up = Tool("sum", None, numbers, strict=True)
    source = grammar(ToolUse(ToolMode.REQUIRED, (sum_up,), (sum_up,)))
    assert takes(source, written(ToolFormat.HERMES, ("sum", '{"any": 1}')))
    assert not takes(source, written(ToolFormat.HERMES, ("sum", '{"any": "1"}')))


def test_a_constraint_names_the_field_that_asked_for_it() -> None:
    for use, param in ((REQUIRED, "tool_choice"), (AUTO, "tools")):
        constraint = answer_constraint(use, PLAIN, None, is_reasoning=False)
        assert constraint is not None
        assert constraint.param == param


@pytest.mark.parametrize("format_", FORMATS)
def test_required_is_one_call_or_more_and_nothing_else(format_: ToolFormat) -> None:
    source = grammar(REQUIRED, AnswerFormat(format_))
    assert takes(source, written(format_, ONE))
    assert takes(source, written(format_, *TWO))
    for wrong in (
        "", "Hello", "Hello " + written(format_, ONE), written(format_, ONE) + " Hello",
        written(format_, ("unknown", "{}")), written(format_, ("weather", "{}")),
        written(format_, ("weather", '{"city": 7}')), written(format_, ("weather", '{"city": "x", "more": 1}')),
        written(format_, ("weather", '{"city":  "x"}')), written(format_, ("time", '{"a": 1}')),
        written(format_, ONE)[:-2],
    ):  # fmt: skip
        assert not takes(source, wrong), wrong


@pytest.mark.parametrize("format_", FORMATS)
def test_without_parallel_calls_there_is_one(format_: ToolFormat) -> None:
    source = grammar(ToolUse(ToolMode.REQUIRED, BOTH, BOTH, parallel=False), AnswerFormat(format_))
    assert takes(source, written(format_, ONE))
    assert not takes(source, written(format_, *TWO))


@pytest.mark.parametrize("format_", FORMATS)
def test_a_named_function_is_called_once_and_no_other(format_: ToolFormat) -> None:
    source = grammar(ToolUse(ToolMode.NAMED, BOTH, (TIME,), parallel=False), AnswerFormat(format_))
    assert takes(source, written(format_, ("time", "{}")))
    assert not takes(source, written(format_, ONE))
    assert not takes(source, written(format_, ("time", "{}"), ("time", "{}")))


@pytest.mark.parametrize("format_", FORMATS)
def test_with_strict_tools_an_answer_is_free_until_a_call_begins(format_: ToolFormat) -> None:
    source = grammar(AUTO, AnswerFormat(format_))
    for text in ("", "Hello", "a\n\nb <b> [x] {y}", " ", "<tool_", written(format_, ONE), written(format_, *TWO)):
        assert takes(source, text), text
    wrong = written(format_, ("weather", '{"city": 7}'))
    assert not takes(source, wrong)
    if format_ is not ToolFormat.LLAMA:
        assert takes(source, "Let me look.\n" + written(format_, ONE))
        assert not takes(source, "Let me look.\n" + wrong)


def test_reasoning_may_come_first_and_has_to_end_where_the_prompt_opened_it() -> None:
    call = written(ToolFormat.HERMES, ONE)
    for is_reasoning, text, expected in (
        (False, call, True), (False, f"<think>hm\n</think>\n\n{call}", True), (False, f"hm</think>{call}", False),
        (True, f"hm\n</think>\n\n{call}", True), (True, call, False), (True, f"hm {call}", False),
        (None, f"hm</think>{call}", True), (None, f"<think>hm</think>{call}", True), (None, call, True),
        (None, f"hm {call}", False),
    ):  # fmt: skip
        assert takes(grammar(REQUIRED, THINKING, is_reasoning=is_reasoning), text) is expected, (is_reasoning, text)
    for is_reasoning in (False, None):
        for text in ("Hello", "<think>hm</think>Hello", f"<think>hm</think>\n\n{call}", call):
            assert takes(grammar(AUTO, THINKING, is_reasoning=is_reasoning), text), (is_reasoning, text)
    free = grammar(AUTO, THINKING, is_reasoning=True)
    assert takes(free, "hm </think>Hello")
    assert takes(free, f"hm <tool_call> hm</think>{call}")
    assert not takes(free, "hm")


def test_what_a_grammar_cannot_express_matters_to_strict_tools_only() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "no-such-format"}}, "required": ["a"]}
    lenient, strict = Tool("f", None, schema), Tool("f", None, schema, strict=True)
    call = written(ToolFormat.HERMES, ("f", '{"a": "x"}'))
    assert takes(grammar(ToolUse(ToolMode.REQUIRED, (lenient,), (lenient,))), call)
    with pytest.raises(ValueError, match="no-such-format"):
        takes(grammar(ToolUse(ToolMode.REQUIRED, (strict,), (strict,))), call)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({}, '{"any": [1]}', "[1]"),
        ({"properties": {"a": {"enum": ["x / \\ \"", "ä\n"]}}, "required": ["a"]}, '{"a": "ä\\n"}', '{"a": "y"}'),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"type": "null"}}}}},
         '{"a": null}', '{"a": 1}'),
        ({"type": "object", "x-guidance": {"whitespace_flexible": True}}, '{"a": 1}', '{ "a": 1}'),
    ],
)  # fmt: skip
def test_schemas_of_any_shape_are_followed(schema: dict[str, Any], good: str, bad: str) -> None:
    tool = Tool("f", None, schema, strict=True)
    source = grammar(ToolUse(ToolMode.REQUIRED, (tool,), (tool,)))
    assert takes(source, written(ToolFormat.HERMES, ("f", good)))
    assert not takes(source, written(ToolFormat.HERMES, ("f", bad)))


TEXTS = st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cs"]))  # llguidance has DEL escaped
ARGUMENTS = st.fixed_dictionaries({"city": TEXTS}, optional={"days": st.integers(-(2**53), 2**53)})
CALLS = st.lists(ARGUMENTS, min_size=1, max_size=3)


@settings(max_examples=settings().max_examples // 2)
@given(st.sampled_from(FORMATS), st.booleans(), CALLS)
def test_what_the_grammar_takes_the_reader_reads(format_: ToolFormat, is_auto: bool, given: list[Any]) -> None:
    # A grammar has the keys in the order of the schema.
    in_order = [{key: one[key] for key in CITY["properties"] if key in one} for one in given]
    calls = [("weather", json.dumps(arguments, ensure_ascii=False)) for arguments in in_order]
    use = AUTO if is_auto else REQUIRED
    text = written(format_, *calls)
    assert takes(grammar(use, AnswerFormat(format_)), text)
    reader = reader_for(AnswerFormat(format_), use)
    answer = Answer() + reader.feed(text) + reader.finish()
    assert (answer.content, [(call.name, call.arguments) for call in answer.tool_calls]) == ("", calls)


PERSON = Constraint(
    kind=ConstraintKind.JSON_SCHEMA,
    source=json.dumps({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}),
    param="response_format.json_schema.schema",
)
PATH = Constraint(kind=ConstraintKind.REGEX, source=r"(/[a-z]+|\/[0-9]+)+\n?", param="structured_outputs.regex")
RULES = Constraint(
    kind=ConstraintKind.GRAMMAR, source='start: "x" start | y\ny: "y"', param="structured_outputs.grammar"
)


@pytest.mark.parametrize(
    ("content", "text"), [(PERSON, '{"name":\n "Ada"}'), (PATH, "/usr/5\n"), (PATH, "/a"), (RULES, "xxy")]
)
def test_a_form_of_the_content_holds_behind_the_reasoning_and_beside_calls(content: Constraint, text: str) -> None:
    call = written(ToolFormat.HERMES, ONE)
    for use, format_, is_reasoning, before in (
        (NO_TOOLS, THINKING, True, "I think </think>\n\n"),
        (NO_TOOLS, THINKING, False, "<think>so</think>"),
        (NO_TOOLS, THINKING, False, ""),
        (NO_TOOLS, THINKING, None, ""),
        (AUTO, PLAIN, False, ""),
        (AUTO, THINKING, True, "hm</think>"),
    ):
        constraint = answer_constraint(use, format_, content, is_reasoning=is_reasoning)
        assert constraint is not None
        assert takes(constraint.source, before + text)
        assert not takes(constraint.source, before + "anything")
        assert takes(constraint.source, before + call) == bool(use)


def test_a_form_of_the_content_is_itself_where_nothing_else_may_come_and_nothing_where_calls_must() -> None:
    assert answer_constraint(NO_TOOLS, PLAIN, PERSON, is_reasoning=False) is PERSON
    required = answer_constraint(REQUIRED, PLAIN, PERSON, is_reasoning=False)
    assert required == answer_constraint(REQUIRED, PLAIN, None, is_reasoning=False)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (ConstraintKind.GRAMMAR, 'root ::= "x"'),
        (ConstraintKind.JSON_SCHEMA, "{"),
        (ConstraintKind.JSON_SCHEMA, "[]"),
    ],
)
def test_what_cannot_be_part_of_another_grammar_is_refused_by_name(kind: ConstraintKind, source: str) -> None:
    content = Constraint(kind=kind, source=source, param="structured_outputs.it")
    with pytest.raises(InvalidRequestError) as raised:
        answer_constraint(AUTO, PLAIN, content, is_reasoning=False)
    assert raised.value.param == "structured_outputs.it"


@pytest.mark.parametrize("gap", ["", " ", "\n  "])
@pytest.mark.parametrize("key", ["city", "name"])
def test_json_may_stand_in_place_of_a_call_that_is_json_too(gap: str, key: str) -> None:
    source = json.dumps({"type": "object", "properties": {key: {"type": "string"}}, "required": [key]})
    content = Constraint(kind=ConstraintKind.JSON_SCHEMA, source=source, param="response_format")
    constraint = answer_constraint(AUTO, AnswerFormat(ToolFormat.LLAMA), content, is_reasoning=False)
    assert constraint is not None
    assert takes(constraint.source, f'{{{gap}"{key}":{gap}"Ada"}}')
    assert takes(constraint.source, written(ToolFormat.LLAMA, ONE))
    assert not takes(constraint.source, "text")


def test_what_strict_tools_and_content_ask_for_together_is_blamed_on_the_tools() -> None:
    lenient = ToolUse(ToolMode.AUTO, (TIME,), (TIME,))
    for use, param in ((AUTO, "tools"), (lenient, PERSON.param)):
        constraint = answer_constraint(use, PLAIN, PERSON, is_reasoning=False)
        assert constraint is not None
        assert constraint.param == param


def test_a_grammar_of_megabytes_is_refused_by_name() -> None:
    large = Tool("large", None, {"type": "object", "description": "x" * 2_000_000}, strict=True)
    with pytest.raises(InvalidRequestError, match="Use fewer or smaller schemas") as raised:
        grammar(ToolUse(ToolMode.REQUIRED, (large,), (large,)))
    assert raised.value.param == "tool_choice"


def test_blank_lines_do_not_hold_up_the_event_loop() -> None:
    content = Constraint(kind=ConstraintKind.GRAMMAR, source="\n" * 100_000 + "x", param="structured_outputs.grammar")
    started = time.monotonic()
    with pytest.raises(InvalidRequestError):
        answer_constraint(AUTO, PLAIN, content, is_reasoning=False)
    assert time.monotonic() - started < 1
