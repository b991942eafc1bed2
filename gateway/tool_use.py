"""What one request says about tools: which there are, and whether the model may, must or must not call them.

Plain data between the wire formats that say it and what acts on it: prompts, grammars and readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class ToolMode(StrEnum):
    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    """At least one call, of whatever tool."""
    NAMED = "named"
    """One call of the only tool that `ToolUse.callable` holds."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """JSON schema of its arguments; None: it takes none."""
    strict: bool = False
    """Its arguments must follow the schema."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return NO_PARAMETERS if self.parameters is None else self.parameters

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's words, as chat templates expect it."""
        function = {"name": self.name, "description": self.description or "", "parameters": dict(self.schema)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    mode: ToolMode = ToolMode.NONE
    tools: tuple[Tool, ...] = ()
    """What the model is told of."""
    callable: tuple[Tool, ...] = field(default=())
    """Of them, those it may call."""
    parallel: bool = True
    """Whether one answer may have several calls."""

    def __bool__(self) -> bool:
        """Whether the answer may have calls at all."""
        return self.mode is not ToolMode.NONE

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.callable)


NO_TOOLS = ToolUse()
