"""What an answer with parts has to be, as a grammar: the guarantee behind `required`, named and strict tools, and
behind a form of the text where reasoning comes before it or calls may stand in its place.

Pure: writes llguidance's dialect of Lark, and compiles nothing. Marks are text in it, to be matched by their bytes.
JSON is written as models write it, with one space behind commas and colons and no other, so that nobody can go on with
white space for ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.errors import InvalidRequestError
from gateway.protocol.client_schemas import without_any_name
from gateway.tool_use import Tool, ToolMode, ToolUse
from model_registry.contract import JSON_WHITESPACE, Constraint, ConstraintKind
from model_registry.tool_formats import (
    REASONING_SYNTAX,
    TOOL_SYNTAX,
    AnswerFormat,
    CallForm,
    ReasoningFormat,
    ReasoningSyntax,
    ToolSyntax,
)

_JSON_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY: Final = r"(?s:.*)"
_LARK: Final = re.compile(r"%llguidance\b|start\s*:")
"""How llguidance tells its notation from llama.cpp's: by a line that begins so."""
MAX_GRAMMAR_CHARS: Final = 1024 * 1024
"""Of everything that tools and content ask for together."""
_MAX_GAP: Final = 2
"""Line breaks between reasoning and answer."""


def answer_constraint(
    use: ToolUse, format_: AnswerFormat, content: Constraint | None, *, is_reasoning: bool | None
) -> Constraint | None:
    """What calls and content must be together; `content` says it of the text of an answer that makes no calls.

    None where the answer may be anything. `is_reasoning`: the prompt has opened the reasoning; None: who knows. Raises
    `InvalidRequestError` for a form of the content that cannot be part of another grammar.
    """
    if content is None or use.mode in (ToolMode.REQUIRED, ToolMode.NAMED):
        return _tool_constraint(use, format_, is_reasoning)
    if not use and format_.reasoning is ReasoningFormat.NONE:
        return content
    is_open = format_.opens_reasoning if is_reasoning is None else is_reasoning
    rules = [*_forced(format_, is_open, "answer"), f"content: {_nested(content)}", f"ANY: /{_ANY}/"]
    if use:
        rules += ["answer: content | calls", *_calls(use, format_)]
    else:
        rules.append("answer: content")
    # What a worker finds wrong may be in either; schemas of other tools leave out what cannot be expressed.
    param = "tools" if any(tool.strict for tool in use.callable) else content.param
    return _grammar(rules, param)


def _grammar(rules: Sequence[str], param: str) -> Constraint:
    """Raises `InvalidRequestError` for one that is too large."""
    source = "\n".join(rules)
    if len(source) > MAX_GRAMMAR_CHARS:
        raise InvalidRequestError(
            f"Invalid '{param}': what is asked for comes to a grammar of {len(source)} characters, more than "
            f"{MAX_GRAMMAR_CHARS}. Use fewer or smaller schemas.",
            param=param,
            code="invalid_value",
        )
    return Constraint(kind=ConstraintKind.GRAMMAR, source=source, param=param)


def _nested(content: Constraint) -> str:
    """As the right side of a rule. Raises `InvalidRequestError`."""
    match content.kind:
        case ConstraintKind.JSON_SCHEMA:
            return (
                f"%json {json.dumps(_json_object(content) | {'x-guidance': {'whitespace_pattern': JSON_WHITESPACE}})}"
            )
        case ConstraintKind.REGEX:
            return f"/{_between_slashes(content.source)}/"
        case ConstraintKind.GRAMMAR:
            if not any(_LARK.match(line.lstrip()) for line in content.source.splitlines()):
                raise InvalidRequestError(
                    f"Invalid '{content.param}': with tools, and for models that reason, a grammar has to be in Lark's "
                    "notation, with a rule 'start: …'.",
                    param=content.param,
                    code="invalid_value",
                )
            return f"%lark {{\n{content.source}\n}}"


def _json_object(content: Constraint) -> dict[str, Any]:
    try:
        schema = json.loads(content.source)
    except ValueError as error:
        raise InvalidRequestError(
            f"Invalid '{content.param}': it is not valid JSON: {error}.", param=content.param, code="invalid_value"
        ) from None
    if not isinstance(schema, dict):
        raise InvalidRequestError(
            f"Invalid '{content.param}': a schema is an object.", param=content.param, code="invalid_value"
        )
    return schema


def _between_slashes(pattern: str) -> str:
    """A regular expression as Lark has one; an escaped slash means the same in it."""
    return re.sub(r"(\\.)|/", lambda match: match[1] or r"\/", pattern, flags=re.DOTALL).replace("\n", r"\n")


def _tool_constraint(use: ToolUse, format_: AnswerFormat, is_reasoning: bool | None) -> Constraint | None:
    """Of an answer whose content may be any text."""
    if not use or (use.mode is ToolMode.AUTO and not any(tool.strict for tool in use.callable)):
        return None
    syntax = TOOL_SYNTAX[format_.tools]
    is_free = use.mode is ToolMode.AUTO
    rules = [
        *(_free(format_, is_reasoning) if is_free else _forced(format_, is_reasoning, "calls")),
        *_calls(use, format_),
        f"ANY: /{_ANY}/",
        f"TEXT: {_text_without_calls(syntax)}",
    ]
    return _grammar(rules, "tools" if is_free else "tool_choice")


def _calls(use: ToolUse, format_: AnswerFormat) -> list[str]:
    syntax = TOOL_SYNTAX[format_.tools]
    arguments = (f"arguments_{index}: %json {_schema(tool)}" for index, tool in enumerate(use.callable))
    return [*_CALLS[syntax.form](syntax, use), *arguments]


# What comes before the calls. Where two terminals may go on, llguidance's lexer takes the one that goes on longest, so
# text that may be something else must not be able to hold it.


def _forced(format_: AnswerFormat, is_reasoning: bool | None, then: str) -> list[str]:
    """Reasoning that was opened has to be closed; other need not be there. Then what that rule says."""
    syntax = REASONING_SYNTAX.get(format_.reasoning)
    if syntax is None:
        return [f"start: {then}"]
    if is_reasoning:
        return [f"start: thought {then}", *_thought(syntax, "ANY")]
    if is_reasoning is None:
        return [f"start: thought? {then}", *_thought(syntax, "TEXT")]
    return [f"start: ({_text(syntax.opening)} thought)? {then}", *_thought(syntax, "ANY")]


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
    parts = ("{", '"name"', ":", " ", json.dumps(tool.name), ",", " ", f'"{syntax.arguments_key}"', ":", " ")
    if syntax.is_bare:
        # Where JSON may stand in place of a call, both must be read in the same lexemes until they differ.
        return f'{" ".join(map(_text, parts))} arguments_{index} "}}"'
    return f'{_text("".join(parts))} arguments_{index} "}}"'


def _schema(tool: Tool) -> str:
    """Of its arguments. What a grammar cannot express is an error of a strict tool, and left out of others."""
    schema: Mapping[str, Any] = tool.schema
    kind = {} if "type" in schema or "$ref" in schema else {"type": "object"}
    style = _JSON_STYLE if tool.strict else {**_JSON_STYLE, "lenient": True}
    return json.dumps({**kind, **without_any_name(schema), "x-guidance": style})


def _text(text: str) -> str:
    """A literal."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """For a regular expression, between slashes."""
    return "".join(char if char.isalnum() or char in "<>_ " else f"\\{char}" for char in text)
