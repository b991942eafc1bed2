"""What a conversation comes to on one model: its prompt, what its answer must be and must show, and what reads it.

For the endpoints that answer conversations, each of which says in its own words what is in one. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from gateway.answer import AnswerReader
from gateway.answer_format import answer_format_of, reasoning_is_open
from gateway.answer_grammar import answer_constraint
from gateway.answer_readers import opening_to_repeat, reader_for, tokens_to_show
from gateway.prompts import render_chat
from gateway.tool_use import NO_TOOLS, ToolUse
from model_registry.contract import ChatMessage, ModelView, Prompt, SamplingParams
from model_registry.tool_formats import AnswerFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a request says, whatever its endpoint."""

    messages: Sequence[ChatMessage]
    tools: ToolUse = NO_TOOLS
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continues_final_message: bool = False
    uses_prompt_format: bool = True
    """False: the model's own chat template makes the prompt, whatever the registry says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlan:
    prompt: Prompt
    sampling: tuple[SamplingParams, ...]
    new_reader: Callable[[], AnswerReader]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWork:
    """What every `Work` of one plan has in common: the endpoint adds the reply."""

    model_id: str
    plan: ChatPlan

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (self.plan.prompt,)

    @property
    def sampling(self) -> tuple[SamplingParams, ...]:
        return self.plan.sampling


def chat_plan(conversation: Conversation, model: ModelView, sampling: Sequence[SamplingParams]) -> ChatPlan:
    """`sampling` are those that the request asks for, with what it says of the form of the text.

    Raises `InvalidRequestError` where the model cannot do all of it.
    """
    prompt_format = model.entry.model.generation.prompt_format if conversation.uses_prompt_format else None
    format_ = answer_format_of(model, uses_template=not prompt_format)
    prompt = render_chat(
        conversation.messages,
        prompt_format,
        tools=conversation.tools.tools,
        tool_format=format_.tools,
        template_kwargs=conversation.template_kwargs,
        continues_final_message=conversation.continues_final_message,
    )
    return ChatPlan(
        prompt=prompt,
        sampling=tuple(_readable(one, format_, conversation) for one in sampling),
        new_reader=partial(reader_for, format_, conversation.tools),
    )


def _readable(sampling: SamplingParams, format_: AnswerFormat, conversation: Conversation) -> SamplingParams:
    """The text has what the answer's reader looks for, and what is guaranteed of it."""
    is_reasoning = not conversation.continues_final_message and reasoning_is_open(format_, conversation.template_kwargs)
    return msgspec.structs.replace(
        sampling,
        constraint=answer_constraint(conversation.tools, format_, sampling.constraint, is_reasoning=is_reasoning),
        shown_tokens=tokens_to_show(format_, conversation.tools),
        repeats_opening=opening_to_repeat(format_),
    )
