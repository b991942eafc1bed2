"""Tools for models whose template knows none."""

from __future__ import annotations

from gateway.prompts import render_chat
from gateway.tool_prompts import description_of, with_tools_described
from gateway.tool_use import Tool
from model_registry.contract import ChatMessage, ChatPrompt, TextPrompt, ToolCall
from model_registry.schema import PromptFormat
from model_registry.tool_formats import ToolFormat

WEATHER = Tool("weather", "of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
HI = ChatMessage("user", "hi")
CALLS = ChatMessage(
    "assistant", "", tool_calls=(ToolCall("a", "weather", '{"city":"Köln"}'), ToolCall("b", "weather", "not JSON"))
)
RESULTS = (ChatMessage("tool", "sunny", tool_call_id="a"), ChatMessage("tool", "rain", tool_call_id="b"))


def test_the_description_goes_into_the_system_message_or_makes_one() -> None:
    description = description_of([WEATHER])
    assert '{"name": "weather", "description": "of a city"' in description
    assert with_tools_described([HI], [WEATHER]) == [ChatMessage("system", description), HI]
    assert with_tools_described([ChatMessage("system", "be brief"), HI], [WEATHER])[0].content == (
        f"be brief\n\n{description}"
    )
    assert with_tools_described([HI], [WEATHER], "you are kind")[0].content == f"you are kind\n\n{description}"


def test_without_tools_nothing_is_said_of_them() -> None:
    assert with_tools_described([HI], []) == [HI]


def test_who_speaks_keeps_a_name() -> None:
    ann = ChatMessage("user", "hi", name="Ann")
    assert with_tools_described([ann], []) == [ann]


def test_calls_and_results_become_text_and_results_that_follow_each_other_one_turn() -> None:
    call, results, bye = with_tools_described([CALLS, *RESULTS, HI], [])
    assert call == ChatMessage(
        "assistant",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": "not JSON"}\n</tool_call>',
    )
    assert results == ChatMessage(
        "user", "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response>"
    )
    assert bye == HI


def test_arguments_that_are_nested_without_end_stay_text() -> None:
    for deep in ("[" * 100_000, "[" * 990 + "]" * 990):
        call = ChatMessage("assistant", "", tool_calls=(ToolCall("a", "weather", deep),))
        assert deep in with_tools_described([call], [])[0].content


def test_a_template_that_knows_tools_gets_them_and_the_messages_as_they_are() -> None:
    prompt = render_chat([HI, CALLS, *RESULTS], None, tools=[WEATHER], tool_format=ToolFormat.HERMES)
    assert prompt == ChatPrompt((HI, CALLS, *RESULTS), (WEATHER.as_dict(),))


def test_any_other_template_gets_them_as_text() -> None:
    prompt = render_chat([HI], "", tools=[WEATHER], tool_format=ToolFormat.DESCRIBED)
    assert prompt == ChatPrompt((ChatMessage("system", description_of([WEATHER])), HI))


def test_a_prompt_format_gets_them_as_text_that_is_not_trusted() -> None:
    for prompt_format in ("<|im_start|>{instruction}", PromptFormat(system="{instruction}", user="{instruction}",
                                                                    assistant="{instruction}")):  # fmt: skip
        prompt = render_chat([HI, CALLS, *RESULTS], prompt_format, tools=[WEATHER], tool_format=ToolFormat.HERMES)
        assert isinstance(prompt, TextPrompt)
        untrusted = "".join(segment.text for segment in prompt.segments if not segment.trusted)
        assert description_of([WEATHER]) in untrusted
        assert "<tool_response>\nsunny" in untrusted
