"""What an answer with tools has to be, as a grammar: the guarantee behind `required`, named and strict tools.

Pure: writes llguidance's dialect of Lark, and compiles nothing. Marks are text in it, to be matched by their bytes.
JSON is written as models write it, with one space behind commas and colons and no other, so that nobody can go on with
white space for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from gateway.tool_use import Tool, ToolMode, ToolUse
from model_registry.contract import Constraint, ConstraintKind
from model_registry.tool_formats import (
    REASONING_SYNTAX,
    TOOL_SYNTAX,
    AnswerFormat,
    CallForm,
    ReasoningSyntax,
    ToolSyntax,
)

_JSON_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY: Final = r"(?s:.*)"
_MAX_GAP: Final = 2
"""Line breaks between reasoning and answer."""


def tool_constraint(use: ToolUse, format_: AnswerFormat, *, is_reasoning: bool | None) -> Constraint | None:
    """None where the answer may be anything. `is_reasoning`: the prompt has opened the reasoning; None: who knows."""
    if not use or (use.mode is ToolMode.AUTO and not any(tool.strict for tool in use.callable)):
        return None
    syntax = TOOL_SYNTAX[format_.tools]
    calls = _CALLS[syntax.form](syntax, use)
    is_free = use.mode is ToolMode.AUTO
    rules = [
        *(_free(format_, is_reasoning) if is_free else _forced(format_, is_reasoning)),
        *calls,
        *(f"arguments_{index}: %json {_schema(tool)}" for index, tool in enumerate(use.callable)),
        f"ANY: /{_ANY}/",
        f"TEXT: {_text_without_calls(syntax)}",
    ]
    return Constraint(kind=ConstraintKind.GRAMMAR, source="\n".join(rules), param="tools" if is_free else "tool_choice")


# What comes before the calls. Where two terminals may go on, llguidance's lexer takes the one that goes on longest, so
# text that may be something else must not be able to hold it.


def _forced(format_: AnswerFormat, is_reasoning: bool | None) -> list[str]:
    """Reasoning that was opened has to be closed; other need not be there. Then calls."""
    syntax = REASONING_SYNTAX.get(format_.reasoning)
    if syntax is None:
        return ["start: calls"]
    if is_reasoning:
        return ["start: thought calls", *_thought(syntax, "ANY")]
    if is_reasoning is None:
        return ["start: thought? calls", *_thought(syntax, "TEXT")]
    return [f"start: ({_text(syntax.opening)} thought)? calls", *_thought(syntax, "ANY")]


def _free(format_: AnswerFormat, is_reasoning: bool | None) -> list[str]:
    """Text, reasoning or not, until a call begins."""
    syntax, tools = REASONING_SYNTAX.get(format_.reasoning), TOOL_SYNTAX[format_.tools]
    if syntax is not None and is_reasoning:
        start = ["start: thought answer", *_thought(syntax, "ANY")]
    else:
        start = ["start: answer"]
    if tools.is_bare:
        return [*start, "answer: TEXT | calls"]
    opened = f"text_and_opening[lazy]: ANY {_text(tools.opening)}"
    return [*start, "answer: TEXT | text_and_opening more", opened]


def _thought(syntax: ReasoningSyntax, text: str) -> list[str]:
    return [
        "thought: to_its_end GAP",
        f"to_its_end[lazy]: {text} {_text(syntax.closing)}",
        rf"GAP: /\n{{0,{_MAX_GAP}}}/",
    ]


def _text_without_calls(syntax: ToolSyntax) -> str:
    if syntax.is_bare:
        return r"/(\s*[^\s{](?s:.*)|\s*)/"
    return f"/{_ANY}/ & ~/{_ANY}{_escaped(syntax.opening)}{_ANY}/"


# Calls, in each form: `calls` from their opening on, `more` from behind it


def _objects(syntax: ToolSyntax, use: ToolUse) -> list[str]:
    called = " | ".join(_object(syntax, index, tool) for index, tool in enumerate(use.callable))
    opening = "" if syntax.is_bare else syntax.opening
    further = f" ({_text(syntax.separator + opening)} call)*" if use.parallel else ""
    if syntax.is_bare:
        return [f"calls: call{further}", f"call: {called}"]
    closing = _text("\n" + syntax.closing)
    return [f"calls: {_text(opening)} more", f"more: call{further}", rf'call: "\n" ({called}) {closing}']


def _lists(syntax: ToolSyntax, use: ToolUse) -> list[str]:
    further = f" ({_text(syntax.separator)} call)*" if use.parallel else ""
    called = " | ".join(_object(syntax, index, tool) for index, tool in enumerate(use.callable))
    return [f"calls: {_text(syntax.opening)} more", f'more: "[" call{further} "]"', f"call: {called}"]


def _named(syntax: ToolSyntax, use: ToolUse) -> list[str]:
    further = f" ({_text(syntax.opening)} call)*" if use.parallel else ""
    called = " | ".join(f"{_text(f'{tool.name}[ARGS]')} arguments_{i}" for i, tool in enumerate(use.callable))
    return [f"calls: {_text(syntax.opening)} more", f"more: call{further}", f"call: {called}"]


_CALLS: Final = {CallForm.OBJECT: _objects, CallForm.LIST: _lists, CallForm.NAMED: _named}


def _object(syntax: ToolSyntax, index: int, tool: Tool) -> str:
    head = f'{{"name": {json.dumps(tool.name)}, "{syntax.arguments_key}": '
    return f'{_text(head)} arguments_{index} "}}"'


def _schema(tool: Tool) -> str:
    """Of its arguments. What a grammar cannot express is an error of a strict tool, and left out of others."""
    schema: Mapping[str, Any] = tool.schema
    kind = {} if "type" in schema or "$ref" in schema else {"type": "object"}
    style = _JSON_STYLE if tool.strict else {**_JSON_STYLE, "lenient": True}
    return json.dumps({**kind, **schema, "x-guidance": style})


def _text(text: str) -> str:
    """A literal."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """For a regular expression, between slashes."""
    return "".join(char if char.isalnum() or char in "<>_ " else f"\\{char}" for char in text)
