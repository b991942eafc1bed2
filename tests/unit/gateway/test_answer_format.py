"""Which format a model's answers are read in."""

from __future__ import annotations

from typing import Any, get_args

from gateway.answer_format import answer_format_of, reasoning_is_open
from model_registry.contract import ModelView
from model_registry.schema import Generation
from model_registry.tool_formats import AnswerFormat, ReasoningFormat, ToolFormat
from tests.support.scripted_pool import entry

FOUND = AnswerFormat(ToolFormat.HERMES, ReasoningFormat.THINK, opens_reasoning=True)


def view(found: AnswerFormat | None, **generation: Any) -> ModelView:
    return ModelView(entry=entry(**generation), created=0, answer_format=found)


def test_the_template_decides_where_it_makes_the_prompt() -> None:
    assert answer_format_of(view(FOUND), uses_template=True) == FOUND


def test_the_registry_decides_before_the_template() -> None:
    given = view(FOUND, tool_format="llama", reasoning_format="none")
    assert answer_format_of(given, uses_template=True) == AnswerFormat(ToolFormat.LLAMA)
    assert answer_format_of(view(None, reasoning_format="mistral"), uses_template=True) == AnswerFormat(
        reasoning=ReasoningFormat.MISTRAL
    )


def test_a_prompt_format_knows_no_tools_but_the_model_may_still_think() -> None:
    assert answer_format_of(view(FOUND), uses_template=False) == AnswerFormat(reasoning=ReasoningFormat.THINK)


def test_a_model_of_which_nothing_is_known_yet_has_its_tools_described() -> None:
    assert answer_format_of(view(None), uses_template=True) == AnswerFormat()


def test_the_registry_knows_the_formats_by_their_names() -> None:
    for key, formats in (("tool_format", ToolFormat), ("reasoning_format", ReasoningFormat)):
        literal, _ = get_args(Generation.model_fields[key].annotation)
        assert set(get_args(literal)) == set(formats)


def test_whether_a_prompt_ends_inside_the_reasoning_is_known_unless_its_variables_may_have_changed_that() -> None:
    assert reasoning_is_open(FOUND, {})
    assert not reasoning_is_open(AnswerFormat(), {})
    assert reasoning_is_open(FOUND, {"enable_thinking": False}) is False
    assert reasoning_is_open(FOUND, {"reasoning_effort": "none"}) is False
    assert reasoning_is_open(AnswerFormat(), {"enable_thinking": True}) is None
