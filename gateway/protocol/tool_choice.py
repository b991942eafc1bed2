"""What a request's tools and its choice among them come to, in whichever wire format they were said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import InvalidRequestError, shortened
from gateway.tool_use import NO_TOOLS, Tool, ToolMode, ToolUse


@dataclass(frozen=True, slots=True)
class NamedTool:
    """A function that a choice names."""

    name: str
    param: str
    """Where it does so in the body."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a tool may, must or must not be called, and which."""

    mode: ToolMode = ToolMode.AUTO
    named: Sequence[NamedTool] | None = None
    """The only ones that may be called; None: whatever tools there are."""


def tool_use_of(tools: Sequence[Tool], choice: Choice, *, parallel: bool, name_param: str) -> ToolUse:
    """What the request comes to; `name_param` is where a tool's name is, such as `tools[{}].name`.

    Raises `InvalidRequestError` where tools and choice do not go together.
    """
    _check_unique(tools, name_param)
    if not tools:
        _check_needs_none(choice)
        return NO_TOOLS
    named = _among(tools, choice.named or ())
    match choice.mode:
        case ToolMode.NONE:
            return NO_TOOLS
        case ToolMode.NAMED:
            return ToolUse(ToolMode.NAMED, tuple(tools), named, parallel=False)
    told = tuple(tools) if choice.named is None else named
    return ToolUse(choice.mode, told, told, parallel)


def _check_unique(tools: Sequence[Tool], name_param: str) -> None:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in names:
            raise _invalid(
                name_param.format(index),
                f"an earlier tool is called '{tool.name}' too. Names of tools must be unique.",
            )
        names.add(tool.name)


def _check_needs_none(choice: Choice) -> None:
    if choice.named is not None or choice.mode is ToolMode.REQUIRED:
        raise InvalidRequestError(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
            code="invalid_value",
        )


def _among(tools: Sequence[Tool], named: Sequence[NamedTool]) -> tuple[Tool, ...]:
    """Those that are named, in the order of all, so that prompts begin alike however they are named."""
    known = {tool.name for tool in tools}
    for one in named:
        if one.name not in known:
            raise _invalid(
                one.param, f"no function named '{shortened(one.name)}' was specified in the 'tools' parameter."
            )
    chosen = {one.name for one in named}
    return tuple(tool for tool in tools if tool.name in chosen)


def _invalid(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{param}': {reason}", param=param, code="invalid_value")
