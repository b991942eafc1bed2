"""The items of POST /v1/responses: what a conversation consists of, on its way in.

What the server gave out as output is taken back as it came. Knows OpenAI's wire format only; what items come to for a
model is `conversation`'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic.json_schema import SkipJsonSchema

from gateway.protocol.validation import LIST, TEXT, RequestModel, invalid, only_neutral, tag, text_or_list

ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = ("input_text", "output_text")
OTHER_PARTS = ("input_image", "input_file", "input_audio", "refusal")
KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
OTHER_KINDS = (
    "additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
    "compaction_trigger", "computer_call", "computer_call_output", "configuration_update", "custom_tool_call",
    "custom_tool_call_output", "file_search_call", "image_generation_call", "local_shell_call",
    "local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call", "mcp_list_tools", "program",
    "program_output", "shell_call", "shell_call_output", "tool_search_call", "tool_search_output", "web_search_call",
)  # fmt: skip
"""What OpenAI's own tools leave in a conversation."""


def _one_of(value: str, supported: tuple[str, ...], others: tuple[str, ...] = ()) -> str:
    if value in supported:
        return value
    if value in others:
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{value}' is not supported.")
    told = ", ".join(f"'{one}'" for one in supported)
    raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {told}.")


def _known_role(role: str) -> str:
    return _one_of(role, ROLES)


def _known_part(kind: str) -> str:
    return _one_of(kind, TEXT_PARTS, OTHER_PARTS)


def _input_part(kind: str) -> str:
    return _one_of(kind, ("input_text",), OTHER_PARTS)


def _known_kind(kind: str) -> str:
    return _one_of(kind, KINDS, OTHER_KINDS)


ItemId = Annotated[str | None, Field(description="Accepted without effect: what is kept gets an id of its own.")]
Status = Annotated[
    Literal["in_progress", "completed", "incomplete"] | None,
    Field(description="Accepted without effect: what is sent is complete."),
]


class InputText(RequestModel):
    type: Annotated[str, AfterValidator(_input_part)] = Field(
        description="What it is.", json_schema_extra={"enum": ["input_text"]}
    )
    text: str = Field(description="What it says.")
    prompt_cache_breakpoint: Any = Field(None, description="Accepted without effect: every prefix is cached.")


class Text(InputText):
    """Of a message, also of one that this server wrote."""

    type: Annotated[str, AfterValidator(_known_part)] = Field(
        description="Whether it was said to the model or by it.", json_schema_extra={"enum": list(TEXT_PARTS)}
    )
    annotations: only_neutral([]) = None  # type: ignore[valid-type]
    logprobs: list[Any] | None = Field(None, description="Accepted without effect: they were told.")


Content = Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[Text], Tag(LIST)], Discriminator(text_or_list)]
Output = Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[InputText], Tag(LIST)], Discriminator(text_or_list)]


def _text(content: str | list[Text] | list[InputText]) -> str:
    """All of its text; parts are lines, as in a chat."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class Message(RequestModel):
    type: Literal["message"] | None = Field(None, description="What the item is; may be left out.")
    role: Annotated[str, AfterValidator(_known_role)] = Field(
        description="Who said it; a developer is a system.", json_schema_extra={"enum": list(ROLES)}
    )
    content: Content = Field(description="A text, or parts of one, which become lines.")
    id: ItemId = None
    status: Status = None

    phase: only_neutral() = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        return _text(self.content)


class _OfTool(RequestModel):
    """What calls and their outputs share."""

    id: ItemId = None
    status: Status = None

    async_: only_neutral(False) = Field(None, alias="async")  # type: ignore[valid-type]
    caller: only_neutral({"type": "direct"}) = None  # type: ignore[valid-type]
    created_by: only_neutral() = None  # type: ignore[valid-type]
    namespace: only_neutral() = None  # type: ignore[valid-type]


class FunctionCall(_OfTool):
    type: Literal["function_call"] = Field(description="A call that the model made.")
    call_id: str = Field(min_length=1, description="What the call's output names.")
    name: str = Field(min_length=1, description="The function's name.")
    arguments: str = Field(description="Its arguments as the model wrote them: JSON, as text.")


class FunctionCallOutput(_OfTool):
    type: Literal["function_call_output"] = Field(description="What came of a call.")
    call_id: str = Field(min_length=1, description="The call's own.")
    output: Output = Field(description="A text, or parts of one, which become lines.")
    name: str | None = Field(None, description="Accepted without effect: its call has the name.")

    @property
    def text(self) -> str:
        return _text(self.output)


class ReasoningText(RequestModel):
    type: Literal["reasoning_text"] = Field(description="What it is.")
    text: str = Field(description="What was thought.")


class Reasoning(RequestModel):
    type: Literal["reasoning"] = Field(description="What the model thought before it answered.")
    id: ItemId = None
    content: list[ReasoningText] | None = Field(None, description="Its parts.")
    status: Status = None

    encrypted_content: only_neutral() = None  # type: ignore[valid-type]
    summary: only_neutral([]) = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content or ())


class ItemReference(RequestModel):
    """An item of a response that is kept, by its id."""

    type: Literal["item_reference"] | None = Field(None, description="What the item is; may be left out.")
    id: str = Field(min_length=1, description="The item's.")


class _UnknownItem(RequestModel):
    """Refuses whatever else has a type."""

    type: Annotated[str, AfterValidator(_known_kind)] = Field(description="What the item is.")


_UNKNOWN = "unknown"


def _kind(item: Any) -> str:
    """Discriminator of items: messages and references may leave out their type."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind is None:
        is_reference = isinstance(item, dict) and "id" in item and not {"role", "content"} & item.keys()
        return tag("item_reference" if is_reference else "message")
    return tag(kind if kind in KINDS else _UNKNOWN) if isinstance(kind, str) else tag(_UNKNOWN)


KeptItem = Message | FunctionCall | FunctionCallOutput | Reasoning
"""What a conversation consists of once references are followed."""

InputItem = Annotated[
    Annotated[Message, Tag(tag("message"))]
    | Annotated[FunctionCall, Tag(tag("function_call"))]
    | Annotated[FunctionCallOutput, Tag(tag("function_call_output"))]
    | Annotated[Reasoning, Tag(tag("reasoning"))]
    | Annotated[ItemReference, Tag(tag("item_reference"))]
    | Annotated[SkipJsonSchema[_UnknownItem], Tag(tag(_UNKNOWN))],
    Discriminator(_kind),
]
