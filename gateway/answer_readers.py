"""Which reader an answer gets, and which special tokens it must see for that.

Pure: puts together what a model's format and a request's tools ask for.
"""

from __future__ import annotations

from gateway.answer import AnswerReader, PlainReader
from gateway.reasoning_reader import ReasoningReader
from gateway.tool_reader import ToolReader
from gateway.tool_use import ToolUse
from model_registry.tool_formats import REASONING_SYNTAX, TOOL_SYNTAX, AnswerFormat


def reader_for(format_: AnswerFormat, use: ToolUse) -> AnswerReader:
    """A new one, for one sequence."""
    reader: AnswerReader = PlainReader()
    if use:
        reader = ToolReader(TOOL_SYNTAX[format_.tools], use.names, parallel=use.parallel)
    syntax = REASONING_SYNTAX.get(format_.reasoning)
    return reader if syntax is None else ReasoningReader(syntax, reader)


def tokens_to_show(format_: AnswerFormat, use: ToolUse) -> tuple[str, ...]:
    """The marks that the reader looks for. Without tools, those of calls would be text to a client."""
    syntax = REASONING_SYNTAX.get(format_.reasoning)
    return (
        *(TOOL_SYNTAX[format_.tools].special_tokens if use else ()),
        *(syntax.special_tokens if syntax is not None else ()),
    )


def opening_to_repeat(format_: AnswerFormat) -> str:
    """What tells the reader that the prompt has opened the reasoning."""
    syntax = REASONING_SYNTAX.get(format_.reasoning)
    return "" if syntax is None else syntax.opening
