"""From messages to the prompt a worker gets, and how long it may be. Pure: knows the registry and the contract.

Three ways, chosen by the model's `prompt_format`:

- none: the conversation goes to the worker as it is, which renders it with the model's own chat template;
- an object: one template per role, in the order of the messages, then `trailing_assistant`;
- a string, made for a single instruction: each turn is the string around what the user said, followed by the answer
  that was given. What a system message says is put before the next user message, and messages that follow each other
  without an answer between them are one instruction, with empty lines between them. The newest turn comes last and is
  left open. A conversation that ends with an assistant's message is left open inside that message.

Tools go to the template where it knows them, and else into a system message: see `tool_prompts`.

Text of a template is trusted: special tokens in it are control. Text of a client is not: there they are only text.
`{instruction}` is the only thing replaced; other braces, and all braces of clients, are literal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from gateway.errors import ContextLengthExceededError, UnsupportedParameterError
from gateway.tool_prompts import with_tools_described
from gateway.tool_use import Tool
from model_registry.contract import ChatMessage, ChatPrompt, Prompt, TextPrompt, TextSegment
from model_registry.schema import INSTRUCTION, ModelConfig, PromptFormat
from model_registry.tool_formats import ToolFormat

SYSTEM = "{system}"
WITHOUT_THINKING: Final = {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}
"""What nobody has to honour where there is no template that could think."""


def render_chat(
    messages: Sequence[ChatMessage],
    prompt_format: PromptFormat | str | None,
    *,
    tools: Sequence[Tool] = (),
    tool_format: ToolFormat = ToolFormat.DESCRIBED,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    continues_final_message: bool = False,
) -> Prompt:
    """The prompt of a conversation. `prompt_format` None or empty: the model's own chat template.

    `tool_format` is the template's. Raises `UnsupportedParameterError` where the request sets variables of a template
    that is not used.
    """
    if not prompt_format:
        is_described = tool_format is ToolFormat.DESCRIBED
        return ChatPrompt(
            tuple(with_tools_described(messages, tools) if is_described else messages),
            () if is_described else tuple(tool.as_dict() for tool in tools),
            dict(template_kwargs),
            continues_final_message,
        )
    _check_template_kwargs(template_kwargs)
    if isinstance(prompt_format, str):
        segments = _render_turns(with_tools_described(messages, tools), prompt_format)
    else:
        messages = with_tools_described(messages, tools, prompt_format.default_system_message)
        segments = _render_roles(messages, prompt_format, opens_answer=not continues_final_message)
    return TextPrompt(tuple(_joined(segments)))


def _check_template_kwargs(template_kwargs: Mapping[str, Any]) -> None:
    for name, value in template_kwargs.items():
        if (name, value) not in WITHOUT_THINKING.items():
            param = name if name == "reasoning_effort" else f"chat_template_kwargs.{name}"
            raise UnsupportedParameterError(
                f"Unsupported parameter: '{param}' is a variable of chat templates, and this model's prompts are made "
                "by its prompt_format instead. Leave it out.",
                param=param,
            )


def check_num_words(text: str, model: ModelConfig, param: str) -> None:
    """Raises `ContextLengthExceededError` when what a client wrote has more words than the registry allows."""
    limit = model.input_word_limit
    if limit is not None and (num_words := len(text.split())) > limit:
        raise ContextLengthExceededError(
            f"This model accepts prompts of at most {limit} words. However, yours has {num_words} words. "
            "Please reduce its length.",
            param=param,
        )


def raw_text(text: str) -> TextPrompt:
    """The prompt of /v1/completions: exactly what the client wrote, special tokens included."""
    return TextPrompt((TextSegment(text, trusted=True),))


@dataclass(frozen=True, slots=True)
class _Filled:
    """A value for a placeholder: text of a client, or segments rendered before."""

    segments: tuple[TextSegment, ...]

    @classmethod
    def client(cls, text: str) -> _Filled:
        return cls((TextSegment(text, trusted=False),))


def _fill(template: str, placeholder: str, value: _Filled) -> list[TextSegment]:
    """The template with every placeholder replaced; what is filled in is never looked at again."""
    first, *rest = template.split(placeholder)
    segments = [TextSegment(first, trusted=True)]
    for literal in rest:
        segments += [*value.segments, TextSegment(literal, trusted=True)]
    return segments


def _joined(segments: Iterable[TextSegment]) -> list[TextSegment]:
    """The same text in as few segments as possible: a tokenizer should see whole template parts."""
    joined: list[TextSegment] = []
    for segment in segments:
        if joined and joined[-1].trusted == segment.trusted:
            joined[-1] = TextSegment(joined[-1].text + segment.text, segment.trusted)
        elif segment.text:
            joined.append(segment)
    return joined


# A string with {instruction}


def _render_turns(messages: Sequence[ChatMessage], template: str) -> list[TextSegment]:
    segments: list[TextSegment] = []
    unanswered: list[str] = []
    for position, message in enumerate(messages):
        if message.role != "assistant":
            unanswered.append(message.content)
            continue
        if unanswered:
            segments += _fill(template, INSTRUCTION, _Filled.client("\n\n".join(unanswered)))
            unanswered = []
        segments.append(TextSegment(message.content, trusted=False))
        if position + 1 < len(messages) and not message.content.endswith("\n"):
            segments.append(TextSegment("\n", trusted=True))
    if unanswered:
        segments += _fill(template, INSTRUCTION, _Filled.client("\n\n".join(unanswered)))
    return segments


# An object with one template per role


def _render_roles(
    messages: Sequence[ChatMessage], prompt_format: PromptFormat, *, opens_answer: bool
) -> list[TextSegment]:
    """Without an answer to open, the last message, an assistant's, is left open."""
    if prompt_format.strip_whitespace:
        messages = [ChatMessage(message.role, message.content.strip()) for message in messages]
    if not any(message.role == "system" for message in messages):
        messages = [ChatMessage("system", prompt_format.default_system_message), *messages]
    if opens_answer:
        trailing = [TextSegment(prompt_format.trailing_assistant, trusted=True)]
    else:
        *messages, last = messages
        before, _, _ = prompt_format.assistant.partition(INSTRUCTION)
        trailing = [TextSegment(before, trusted=True), TextSegment(last.content, trusted=False)]
    segments = (
        _render_system_in_user(messages, prompt_format)
        if prompt_format.system_in_user
        else [segment for message in messages for segment in _render_role(message, prompt_format)]
    )
    return [*segments, *trailing]


def _render_role(message: ChatMessage, prompt_format: PromptFormat) -> list[TextSegment]:
    value = _Filled.client(message.content)
    match message.role:
        case "system":
            wanted = message.content or prompt_format.add_system_tags_even_if_message_is_empty
            return _fill(prompt_format.system, INSTRUCTION, value) if wanted else []
        case "assistant":
            return _fill(prompt_format.assistant, INSTRUCTION, value)
        case _:
            return _fill(prompt_format.user, INSTRUCTION, value)


def _render_system_in_user(messages: Sequence[ChatMessage], prompt_format: PromptFormat) -> list[TextSegment]:
    """All system messages together, in the first user message; an empty one is made when there is none."""
    said = "\n\n".join(message.content for message in messages if message.role == "system" and message.content)
    system = _Filled(tuple(_render_role(ChatMessage("system", said), prompt_format)))
    others = [message for message in messages if message.role != "system"]
    if not any(message.role == "user" for message in others):
        others.insert(0, ChatMessage("user", ""))
    segments: list[TextSegment] = []
    for message in others:
        if message.role == "user":
            segments += _fill_user(prompt_format.user, system, _Filled.client(message.content))
            system = _Filled(())
        else:
            segments += _render_role(message, prompt_format)
    return segments


def _fill_user(template: str, system: _Filled, instruction: _Filled) -> list[TextSegment]:
    segments: list[TextSegment] = []
    for position, literal in enumerate(template.split(SYSTEM)):
        segments += system.segments if position else ()
        segments += _fill(literal, INSTRUCTION, instruction)
    return segments
