"""Tools and the choice among them, as a chat's body has them. Knows OpenAI's wire format only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from gateway.errors import InvalidRequestError, MissingParameterError, shortened
from gateway.protocol.fields import INT64_MAX
from gateway.protocol.tool_choice import Choice, NamedTool, tool_use_of
from gateway.protocol.validation import OBJECT, TEXT, RequestModel, invalid
from gateway.tool_use import Tool, ToolMode, ToolUse

MAX_TOOLS = 128
MAX_NAME_LENGTH = 64
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_CHOICES = ("none", "auto", "required")
_KINDS_OF_CHOICE = ("function", "allowed_tools")


def _function_name(name: str) -> str:
    if not _NAME_CHARS.issuperset(name):
        raise invalid(
            "invalid_value",
            "Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]+$'.",
        )
    return name


def _of_functions(kind: str) -> str:
    if kind != "function":
        raise invalid(
            "unsupported_value",
            f"Unsupported value for '{{param}}': '{shortened(kind)}' tools are not supported. Use 'function'.",
        )
    return kind


def object_schema(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Arguments are always a JSON object."""
    kind = "object" if parameters is None else parameters.get("type", "object")
    if kind != "object":
        raise invalid(
            "invalid_function_parameters",
            f"Invalid schema for '{{param}}': expected a JSON schema of 'type: \"object\"', but got "
            f"'type: {shortened(repr(kind))}'.",
        )
    _check_integers(parameters)
    return parameters


def _check_integers(schema: Any) -> None:
    """Larger ones cannot be sent to a worker."""
    level = [schema]
    while level:
        for value in level:
            if isinstance(value, int) and not -INT64_MAX - 1 <= value <= INT64_MAX:
                raise invalid(
                    "invalid_function_parameters",
                    "Invalid schema for '{param}': it holds an integer of more than 64 bits.",
                )
        parents = (value for value in level if isinstance(value, dict | list))
        level = [child for one in parents for child in (one.values() if isinstance(one, dict) else one)]


FunctionName = Annotated[
    str,
    Field(min_length=1, max_length=MAX_NAME_LENGTH, json_schema_extra={"pattern": "^[a-zA-Z0-9_-]+$"}),
    AfterValidator(_function_name),
]
FunctionType = Annotated[str, AfterValidator(_of_functions), WithJsonSchema({"type": "string", "enum": ["function"]})]


class FunctionDefinition(RequestModel):
    name: FunctionName = Field(description="The function's name.")
    description: str | None = Field(None, description="What it does and when to call it; the model reads this.")
    parameters: Annotated[dict[str, Any] | None, AfterValidator(object_schema)] = Field(
        None,
        description="JSON schema of the arguments.",
        json_schema_extra={"properties": {"type": {"const": "object", "description": "What arguments are."}}},
    )
    strict: bool | None = Field(None, description="Have the arguments follow the schema, by constrained decoding.")


class ToolDefinition(RequestModel):
    type: FunctionType = Field(description="What kind of tool it is.")
    function: FunctionDefinition = Field(description="The function that may be called.")

    def as_tool(self) -> Tool:
        function = self.function
        return Tool(function.name, function.description, function.parameters, bool(function.strict))


class FunctionReference(RequestModel):
    name: str = Field(description="Name of a function in `tools`.")


class ToolReference(RequestModel):
    type: FunctionType = Field(description="What kind of tool it is.")
    function: FunctionReference = Field(description="Which one.")


class AllowedTools(RequestModel):
    mode: Annotated[str, AfterValidator(lambda mode: _one_of(mode, ("auto", "required")))] = Field(
        description="Whether the model may or must call one of them.", json_schema_extra={"enum": ["auto", "required"]}
    )
    tools: list[ToolReference] = Field(
        min_length=1, max_length=MAX_TOOLS, description="Those of `tools` that it is told of."
    )


def _one_of(value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        supported = ", ".join(f"'{one}'" for one in choices)
        raise invalid(
            "invalid_value", f"Invalid value for '{{param}}': '{shortened(value)}'. Supported values are: {supported}."
        )
    return value


def _kind_of_choice(kind: str) -> str:
    return _of_functions(kind) if kind == "custom" else _one_of(kind, _KINDS_OF_CHOICE)


class ToolChoiceObject(RequestModel):
    """A function by its name, or those that are allowed."""

    type: Annotated[str, AfterValidator(_kind_of_choice)] = Field(
        description="Which of the two it is.", json_schema_extra={"enum": list(_KINDS_OF_CHOICE)}
    )
    function: FunctionReference | None = Field(None, description="The function that is called, once.")
    allowed_tools: AllowedTools | None = Field(None, description="Those that may be called, and no others.")

    def check_parts(self) -> None:
        """Raises `InvalidRequestError` unless it has what its type asks for, and only that."""
        parts = {"function": self.function, "allowed_tools": self.allowed_tools}
        if parts.pop(self.type) is None:
            raise MissingParameterError(f"tool_choice.{self.type}")
        for name, part in parts.items():
            if part is not None:
                raise InvalidRequestError(
                    f"Invalid 'tool_choice.{name}': it does not go with the type '{self.type}'.",
                    param=f"tool_choice.{name}",
                    code="invalid_value",
                )

    def references(self) -> list[NamedTool]:
        """The functions it names."""
        if self.allowed_tools is not None:
            path = "tool_choice.allowed_tools.tools[{}].function.name"
            return [
                NamedTool(one.function.name, path.format(index)) for index, one in enumerate(self.allowed_tools.tools)
            ]
        return [] if self.function is None else [NamedTool(self.function.name, "tool_choice.function.name")]


def _choice_kind(value: Any) -> str:
    return OBJECT if isinstance(value, dict) else TEXT


def _known_choice(choice: str | None) -> str | None:
    return None if choice is None else _one_of(choice, _CHOICES)


ToolChoice = Annotated[
    Annotated[str | None, AfterValidator(_known_choice), WithJsonSchema({"enum": [None, *_CHOICES]}), Tag(TEXT)]
    | Annotated[ToolChoiceObject, Tag(OBJECT)],
    Discriminator(_choice_kind),
]


def chat_tool_use(
    definitions: Sequence[ToolDefinition], choice: str | ToolChoiceObject | None, *, parallel: bool
) -> ToolUse:
    """What the request comes to. Raises `InvalidRequestError` where its tools and its choice do not go together."""
    tools = [definition.as_tool() for definition in definitions]
    return tool_use_of(tools, _choice(choice), parallel=parallel, name_param="tools[{}].function.name")


def _choice(choice: str | ToolChoiceObject | None) -> Choice:
    if not isinstance(choice, ToolChoiceObject):
        return Choice(ToolMode(choice or "auto"))
    choice.check_parts()
    allowed = choice.allowed_tools
    return Choice(ToolMode.NAMED if allowed is None else ToolMode(allowed.mode), choice.references())
