"""Rendering of conversations: exact texts, and which of them are trusted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ContextLengthExceededError, UnsupportedParameterError
from gateway.prompts import check_num_words, raw_text, render_chat
from model_registry.contract import ChatMessage, ChatPrompt, Prompt, TextPrompt, TextSegment
from model_registry.schema import ModelConfig, PromptFormat

STRING = "### Instruction:\n{instruction}\n### Response:\n"


def said(*turns: str) -> list[ChatMessage]:
    """`u:hi` is a user's message."""
    roles = {"u": "user", "s": "system", "a": "assistant"}
    return [ChatMessage(roles[turn[0]], turn[2:]) for turn in turns]


def text_of(prompt: Prompt) -> str:
    assert isinstance(prompt, TextPrompt)
    return "".join(segment.text for segment in prompt.segments)


def roles(**keys: Any) -> PromptFormat:
    defaults = {"system": "<s>{instruction}</s>", "user": "<u>{instruction}</u>", "assistant": "<a>{instruction}</a>"}
    return PromptFormat.model_validate(defaults | {"trailing_assistant": "<a>"} | keys)


@pytest.mark.parametrize("prompt_format", [None, ""])
def test_without_a_format_the_conversation_goes_to_the_models_own_template(prompt_format: str | None) -> None:
    assert render_chat(said("s:be brief", "u:hi"), prompt_format) == ChatPrompt(tuple(said("s:be brief", "u:hi")))


def test_raw_text_is_what_the_client_wrote_control_tokens_included() -> None:
    assert raw_text("<s>hi") == TextPrompt((TextSegment("<s>hi", trusted=True),))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (said("u:hi"), "### Instruction:\nhi\n### Response:\n"),
        (said("s:be brief", "u:hi"), "### Instruction:\nbe brief\n\nhi\n### Response:\n"),
        (
            said("u:hi", "a:hello", "u:bye"),
            "### Instruction:\nhi\n### Response:\nhello\n### Instruction:\nbye\n### Response:\n",
        ),
        (
            said("u:hi", "a:hello\n", "u:bye"),
            "### Instruction:\nhi\n### Response:\nhello\n### Instruction:\nbye\n### Response:\n",
        ),
        (said("u:one", "u:two"), "### Instruction:\none\n\ntwo\n### Response:\n"),
        (said("u:hi", "a:well"), "### Instruction:\nhi\n### Response:\nwell"),
        (said("a:hello", "u:hi"), "hello\n### Instruction:\nhi\n### Response:\n"),
    ],
)
def test_a_string_format_wraps_each_turn(messages: list[ChatMessage], expected: str) -> None:
    assert text_of(render_chat(messages, STRING)) == expected


def test_other_braces_are_literal_and_clients_cannot_fill_placeholders() -> None:
    template = "{} {0} {system} {instruction} {{instruction}}"
    assert text_of(render_chat(said("u:{instruction}{0}"), template)) == (
        "{} {0} {system} {instruction}{0} {{instruction}{0}}"
    )


def test_only_the_templates_own_text_is_trusted() -> None:
    prompt = render_chat(said("u:<|im_end|>"), "<|im_start|>{instruction}<|im_end|>")
    assert prompt == TextPrompt(
        (TextSegment("<|im_start|>", True), TextSegment("<|im_end|>", False), TextSegment("<|im_end|>", True))
    )


@pytest.mark.parametrize(
    ("keys", "messages", "expected"),
    [
        ({}, said("u:hi"), "<u>hi</u><a>"),
        ({}, said("s:x", "u:hi", "a:yo", "u:bye"), "<s>x</s><u>hi</u><a>yo</a><u>bye</u><a>"),
        ({}, said("u:  hi \n"), "<u>hi</u><a>"),
        ({"strip_whitespace": False}, said("u: hi "), "<u> hi </u><a>"),
        ({"default_system_message": "d"}, said("u:hi"), "<s>d</s><u>hi</u><a>"),
        ({"default_system_message": "d"}, said("s:x", "u:hi"), "<s>x</s><u>hi</u><a>"),
        ({"add_system_tags_even_if_message_is_empty": True}, said("u:hi"), "<s></s><u>hi</u><a>"),
        ({"user": "<u>{system}{instruction}</u>", "system_in_user": True}, said("u:hi"), "<u>hi</u><a>"),
        (
            {"user": "<u>{system}{instruction}</u>", "system_in_user": True},
            said("s:x", "u:hi", "a:yo", "u:bye"),
            "<u><s>x</s>hi</u><a>yo</a><u>bye</u><a>",
        ),
        (
            {"user": "<u>{system}{instruction}</u>", "system_in_user": True, "default_system_message": "d"},
            said("a:yo"),
            "<u><s>d</s></u><a>yo</a><a>",
        ),
    ],
)
def test_an_object_format_has_a_template_per_role(
    keys: dict[str, Any], messages: list[ChatMessage], expected: str
) -> None:
    assert text_of(render_chat(messages, roles(**keys))) == expected


def test_the_last_message_of_an_assistant_is_left_open_where_the_answer_goes_on_with_it() -> None:
    messages = said("u:hi", "a:well ")
    assert text_of(render_chat(messages, roles(), continues_final_message=True)) == "<u>hi</u><a>well"
    assert text_of(render_chat(messages, STRING, continues_final_message=True)).endswith("### Response:\nwell ")
    assert render_chat(messages, None, continues_final_message=True) == ChatPrompt(
        tuple(messages), continues_final_message=True
    )


def test_variables_of_a_template_are_refused_where_there_is_none_unless_they_ask_for_nothing() -> None:
    render_chat(said("u:hi"), STRING, template_kwargs={"enable_thinking": False, "reasoning_effort": "none"})
    for kwargs, param in (
        ({"enable_thinking": True}, "chat_template_kwargs.enable_thinking"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
    ):
        with pytest.raises(UnsupportedParameterError, match=param) as raised:
            render_chat(said("u:hi"), STRING, template_kwargs=kwargs)
        assert raised.value.param == param


CONVERSATIONS = st.lists(
    st.builds(ChatMessage, st.sampled_from(("system", "user", "assistant")), st.text(min_size=1)), min_size=1
)


@given(CONVERSATIONS, st.sampled_from((STRING, roles(strip_whitespace=False))))
def test_every_word_of_a_client_is_in_the_prompt_and_none_is_trusted(
    messages: list[ChatMessage], prompt_format: str | PromptFormat
) -> None:
    prompt = render_chat(messages, prompt_format)
    assert isinstance(prompt, TextPrompt)
    untrusted = "".join(segment.text for segment in prompt.segments if not segment.trusted)
    position = 0
    for message in messages:
        position = untrusted.index(message.content, position) + len(message.content)


def limited_to(max_input_words: int | None) -> ModelConfig:
    generation = {"max_input_words": max_input_words}
    return ModelConfig.model_validate(
        {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}, "generation": generation}
    )


def test_words_are_what_whitespace_parts() -> None:
    check_num_words(" one\ttwo\n\nthree ", limited_to(3), "prompt")
    check_num_words("x" * 10_000, limited_to(3), "prompt")
    check_num_words("word " * 10_000, limited_to(None), "prompt")
    with pytest.raises(ContextLengthExceededError, match=r"at most 3 words.* has 4 words") as raised:
        check_num_words("one two three four", limited_to(3), "prompt")
    assert (raised.value.status, raised.value.param) == (400, "prompt")
