"""The body of POST /v1/responses. Knows OpenAI's wire format only."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema

from gateway.errors import InvalidRequestError
from gateway.protocol.chat import MAX_TOP_LOGPROBS
from gateway.protocol.fields import INT32_MAX, NO_EFFECT, SamplingFields, check_stream_options
from gateway.protocol.response_items import InputItem, ItemReference, Message
from gateway.protocol.structured import schema_text
from gateway.protocol.tool_choice import Choice, NamedTool, tool_use_of
from gateway.protocol.tools import MAX_TOOLS, FunctionDefinition, FunctionType
from gateway.protocol.validation import LIST, TEXT, RequestModel, invalid, only_neutral, tag, text_or_list
from gateway.tool_use import Tool, ToolMode, ToolUse

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    LOGPROBS, "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "reasoning.encrypted_content", "web_search_call.action.sources",
    "web_search_call.results",
)  # fmt: skip
"""All but the logprobs say nothing here: there are no such items, and reasoning is told in the clear."""

MAX_REFERENCES = 1024
MAX_METADATA = 16
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
_WITHOUT_EFFECT = {name: why for name, why in NO_EFFECT.items() if name not in ("metadata", "store")}

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


def includable(name: str) -> str:
    if name in INCLUDABLE:
        return name
    supported = ", ".join(f"'{one}'" for one in INCLUDABLE)
    raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {supported}.")


Includable = Annotated[str, AfterValidator(includable), WithJsonSchema({"type": "string", "enum": list(INCLUDABLE)})]


class _Tool(RequestModel):
    """What is looked at first: tools of other types are not functions that miss something."""

    type: FunctionType = Field(description="What kind of tool it is.")


class FunctionTool(FunctionDefinition, _Tool):
    """The same as in a chat, but flat."""

    allowed_callers: only_neutral(["direct"]) = None  # type: ignore[valid-type]
    async_: only_neutral(False) = Field(None, alias="async")  # type: ignore[valid-type]
    defer_loading: only_neutral(False) = None  # type: ignore[valid-type]
    output_schema: only_neutral() = None  # type: ignore[valid-type]


class NamedFunction(RequestModel):
    """Of a tool choice: a function that is among the tools."""

    type: FunctionType = Field(description="What kind of tool it is.")
    name: str = Field(description="Name of a function in `tools`.")


class AllowedTools(RequestModel):
    """A tool choice that leaves some of the tools."""

    type: Literal["allowed_tools"] = Field(description="That some are allowed.")
    mode: Literal["auto", "required"] = Field(description="Whether the model may or must call one of them.")
    tools: list[NamedFunction] = Field(min_length=1, description="Those of `tools` that it is told of.")


def _choice_kind(value: Any) -> str:
    if isinstance(value, dict):
        return tag("allowed_tools") if value.get("type") == "allowed_tools" else tag("function")
    return TEXT


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"] | None, Tag(TEXT)]
    | Annotated[NamedFunction, Tag(tag("function"))]
    | Annotated[AllowedTools, Tag(tag("allowed_tools"))],
    Discriminator(_choice_kind),
]


def _choice(choice: str | NamedFunction | AllowedTools | None) -> Choice:
    match choice:
        case NamedFunction(name=name):
            return Choice(ToolMode.NAMED, [NamedTool(name, "tool_choice.name")])
        case AllowedTools(mode=mode, tools=tools):
            named = [NamedTool(one.name, f"tool_choice.tools[{index}].name") for index, one in enumerate(tools)]
            return Choice(ToolMode(mode), named)
    return Choice(ToolMode(choice or "auto"))


def _not_too_long(schema: dict[str, Any]) -> dict[str, Any]:
    schema_text(schema)
    return schema


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"] = Field(description="JSON that fits a schema.")
    name: str = Field(pattern=_NAME, description="Returned; the model is not told of the schema.")
    schema_: Annotated[dict[str, Any], AfterValidator(_not_too_long)] = Field(
        alias="schema", description="What the answer must fit."
    )
    description: str | None = Field(None, description="Returned; the model is not told of the schema.")
    strict: bool | None = Field(None, description="Returned; an answer always fits the schema.")


class PlainFormat(RequestModel):
    type: Literal["text", "json_object"] = Field(description="Any text, or any JSON object.")


def _format_kind(value: Any) -> str:
    is_schema = isinstance(value, dict) and value.get("type") == "json_schema"
    return tag("json_schema") if is_schema else tag("plain")


TextFormat = Annotated[
    Annotated[JsonSchemaFormat, Tag(tag("json_schema"))] | Annotated[PlainFormat | None, Tag(tag("plain"))],
    Discriminator(_format_kind),
]


class TextOptions(RequestModel):
    format: TextFormat = Field(None, description="What the answer's text must be.")

    verbosity: only_neutral("medium") = None  # type: ignore[valid-type]


class ReasoningOptions(RequestModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much to think, where the model's chat template knows about it."
    )

    context: only_neutral("auto") = None  # type: ignore[valid-type]
    generate_summary: only_neutral("auto") = None  # type: ignore[valid-type]
    mode: only_neutral("standard") = None  # type: ignore[valid-type]
    summary: only_neutral("auto") = None  # type: ignore[valid-type]


class ResponseStreamOptions(RequestModel):
    include_obfuscation: bool | None = Field(None, description="Accepted without effect: events are never padded.")


Input = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[Annotated[list[InputItem], Field(min_length=1)], Tag(LIST)],
    Discriminator(text_or_list),
]


class ResponseRequest(SamplingFields):
    """Go on with a conversation, in items."""

    input: Input = Field(description="What is said: a text, or items.")
    instructions: str | None = Field(
        None, description="A system message before everything else, of this response only."
    )
    previous_response_id: str | None = Field(
        None, description="A response that is kept: its conversation comes before the input."
    )
    store: bool | None = Field(
        None, description="False: this response is not kept. Otherwise it is where the gateway has a store."
    )
    max_output_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description="Tokens generated at most.")
    include: list[Includable] | None = Field(
        None, description=f"`{LOGPROBS}` tells how likely each generated token was; the others add nothing here."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description=f"Likeliest tokens told beside it, with `{LOGPROBS}` only."
    )
    text: TextOptions | None = Field(None, description="The form of the answer.")
    reasoning: ReasoningOptions | None = Field(None, description="How the model thinks before it answers.")
    tools: list[FunctionTool] | None = Field(
        None, max_length=MAX_TOOLS, description="Functions that the model may call."
    )
    tool_choice: ToolChoice = Field(None, description="Whether it may, must, or which.")
    parallel_tool_calls: bool | None = Field(None, description="Whether it may call several in one answer.")
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)] | None = Field(
        None, description="Kept and returned."
    )
    safety_identifier: str | None = Field(None, description="Accepted without effect, and returned.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Only with `stream`.")

    access_programs: only_neutral() = None  # type: ignore[valid-type]
    background: only_neutral(False) = None  # type: ignore[valid-type]
    background_options: only_neutral() = None  # type: ignore[valid-type]
    context_management: only_neutral([]) = None  # type: ignore[valid-type]
    conversation: only_neutral() = None  # type: ignore[valid-type]
    image: only_neutral() = None  # type: ignore[valid-type]
    max_tool_calls: only_neutral() = None  # type: ignore[valid-type]
    prompt: only_neutral() = None  # type: ignore[valid-type]
    truncation: only_neutral("disabled") = None  # type: ignore[valid-type]

    without_effect: ClassVar[dict[str, str]] = _WITHOUT_EFFECT

    def check_together(self) -> None:
        super().check_together()
        check_stream_options(self.stream_options, self.stream)
        if self.top_logprobs and self.num_logprobs is None:
            raise InvalidRequestError(
                f"Invalid 'top_logprobs': it is only allowed when 'include' has '{LOGPROBS}'.",
                param="top_logprobs",
                code="invalid_value",
            )
        num_references = sum(isinstance(item, ItemReference) for item in self.items)
        if num_references > MAX_REFERENCES:
            raise InvalidRequestError(
                f"Invalid 'input': {num_references} references to items, more than {MAX_REFERENCES}. Send the items.",
                param="input",
                code="invalid_value",
            )
        # Whatever is wrong with these is to be said now.
        _ = self.tool_use

    @cached_property
    def tool_use(self) -> ToolUse:
        """Raises `InvalidRequestError` where tools and choice do not go together."""
        tools = [Tool(one.name, one.description, one.parameters, bool(one.strict)) for one in self.tools or ()]
        parallel = self.parallel_tool_calls is not False
        return tool_use_of(tools, _choice(self.tool_choice), parallel=parallel, name_param="tools[{}].name")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template."""
        effort = self.reasoning.effort if self.reasoning else None
        return {} if effort is None else {"reasoning_effort": effort}

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None

    @property
    def items(self) -> list[InputItem]:
        """The input as items, whatever its form."""
        if isinstance(self.input, str):
            return [Message(role="user", content=self.input)]
        return self.input
