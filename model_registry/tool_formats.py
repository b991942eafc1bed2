"""How models write their tool calls and their reasoning, and how a chat template shows which way its model has.

Pure tables and text, for both sides: the worker looks a template up here when it loads a model, the gateway reads and
constrains answers by the syntax. Knows no library.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec


class ToolFormat(StrEnum):
    DESCRIBED = "described"
    """Tools are described in a system message, since the template knows none or a format that is not read here; the
    calls are Hermes'."""
    HERMES = "hermes"
    """Hermes, Qwen and many others: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""
    LLAMA = "llama"
    """Llama 3: `{"name": …, "parameters": {…}}`, perhaps behind `<|python_tag|>`."""
    MISTRAL = "mistral"
    """Mistral until 2025: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`."""
    MISTRAL_ARGS = "mistral_args"
    """Mistral since: `[TOOL_CALLS]name[ARGS]{…}`, once per call."""
    GRANITE = "granite"
    """Granite 3: `<|tool_call|>[{"name": …, "arguments": {…}}, …]`."""


class ReasoningFormat(StrEnum):
    NONE = "none"
    THINK = "think"
    """`<think>…</think>`, then the answer."""
    MISTRAL = "mistral"
    """`[THINK]…[/THINK]`, then the answer."""


class CallForm(StrEnum):
    """What stands behind the marker that opens a call."""

    OBJECT = "object"
    LIST = "list"
    NAMED = "named"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSyntax:
    form: CallForm
    opening: str
    closing: str = ""
    separator: str = ""
    """Between calls."""
    arguments_key: str = "arguments"
    is_bare: bool = False
    """A call may also stand at the very beginning, without its opening."""
    special_tokens: tuple[str, ...] = ()
    """Those of its marks that vocabularies may have as special tokens."""


@dataclass(frozen=True, slots=True)
class ReasoningSyntax:
    opening: str
    closing: str

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return self.opening, self.closing


_HERMES: Final = ToolSyntax(
    form=CallForm.OBJECT,
    opening="<tool_call>",
    closing="</tool_call>",
    separator="\n",
    special_tokens=("<tool_call>", "</tool_call>"),
)
TOOL_SYNTAX: Final[Mapping[ToolFormat, ToolSyntax]] = {
    ToolFormat.DESCRIBED: _HERMES,
    ToolFormat.HERMES: _HERMES,
    ToolFormat.LLAMA: ToolSyntax(
        form=CallForm.OBJECT,
        opening="<|python_tag|>",
        separator="; ",
        arguments_key="parameters",
        is_bare=True,
        special_tokens=("<|python_tag|>",),
    ),
    ToolFormat.MISTRAL: ToolSyntax(
        form=CallForm.LIST, opening="[TOOL_CALLS]", separator=", ", special_tokens=("[TOOL_CALLS]",)
    ),
    ToolFormat.MISTRAL_ARGS: ToolSyntax(
        form=CallForm.NAMED, opening="[TOOL_CALLS]", special_tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    ),
    ToolFormat.GRANITE: ToolSyntax(
        form=CallForm.LIST, opening="<|tool_call|>", separator=", ", special_tokens=("<|tool_call|>",)
    ),
}
REASONING_SYNTAX: Final[Mapping[ReasoningFormat, ReasoningSyntax]] = {
    ReasoningFormat.THINK: ReasoningSyntax("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ReasoningSyntax("[THINK]", "[/THINK]"),
}


MARKS: Final = frozenset(
    (
        *(mark for tools in TOOL_SYNTAX.values() for mark in tools.special_tokens),
        *(mark for reasoning in REASONING_SYNTAX.values() for mark in reasoning.special_tokens),
    )
)
"""Of all formats, those that vocabularies may have as special tokens, but that grammars spell as text."""


class AnswerFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a model's answers are to be read."""

    tools: ToolFormat = ToolFormat.DESCRIBED
    reasoning: ReasoningFormat = ReasoningFormat.NONE
    opens_reasoning: bool = False
    """Its template itself opens the reasoning, so that answers begin inside it."""


@dataclass(frozen=True, slots=True)
class _Tell:
    """What a template says when its model writes calls in a format."""

    format: ToolFormat
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()


_TELLS: Final = (
    _Tell(ToolFormat.MISTRAL_ARGS, ("[TOOL_CALLS]", "[ARGS]")),
    _Tell(ToolFormat.MISTRAL, ("[TOOL_CALLS]",)),
    _Tell(ToolFormat.GRANITE, ("<|tool_call|>",), ("<|/tool_call|>",)),
    # Qwen3-Coder and GLM write XML between the same marks.
    _Tell(ToolFormat.HERMES, ("<tool_call>",), ("<function=", "<arg_key>")),
    _Tell(ToolFormat.LLAMA, ('{"name": function name, "parameters":',)),
)


def tool_format_of(template: str, variables: Collection[str]) -> ToolFormat:
    """How a model with this chat template writes its calls; `variables` are those that the template is given."""
    if "tools" not in variables:
        return ToolFormat.DESCRIBED
    for tell in _TELLS:
        if all(mark in template for mark in tell.has) and not any(mark in template for mark in tell.lacks):
            return tell.format
    return ToolFormat.DESCRIBED


def reasoning_format_of(template: str) -> ReasoningFormat:
    for format_, syntax in REASONING_SYNTAX.items():
        if syntax.closing in template:
            return format_
    return ReasoningFormat.NONE
