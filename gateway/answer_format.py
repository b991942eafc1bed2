"""How one model's answers are to be read: what its registry file says, and else what its chat template shows.

Pure. A model whose replicas have said nothing yet is read as one that knows no tools, which every model can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.prompts import WITHOUT_THINKING
from model_registry.contract import ModelView
from model_registry.tool_formats import AnswerFormat, ReasoningFormat, ToolFormat


def reasoning_is_open(format_: AnswerFormat, template_kwargs: Mapping[str, Any]) -> bool | None:
    """Whether a prompt ends inside the reasoning; None where its variables may have changed that."""
    if any(template_kwargs.get(name) == value for name, value in WITHOUT_THINKING.items()):
        return False
    return None if template_kwargs else format_.opens_reasoning


def answer_format_of(model: ModelView, *, uses_template: bool) -> AnswerFormat:
    """`uses_template`: the prompt is made by the model's own chat template."""
    found = model.answer_format or AnswerFormat()
    generation = model.entry.model.generation
    tools = ToolFormat(generation.tool_format) if generation.tool_format else found.tools
    reasoning = ReasoningFormat(generation.reasoning_format) if generation.reasoning_format else found.reasoning
    return AnswerFormat(
        tools if uses_template else ToolFormat.DESCRIBED,
        reasoning,
        found.opens_reasoning and uses_template and reasoning is found.reasoning,
    )
