"""The bodies of POST /v1/messages and /v1/messages/count_tokens. Knows Anthropic's wire format only."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.errors import InvalidRequestError, shortened
from gateway.protocol.fields import INT32_MAX, MAX_STOPS, AnsweredBody, Body, SamplingFields, StopString
from gateway.protocol.message_blocks import CACHE_CONTROL, MessageParam, System, conversation_of
from gateway.protocol.structured import SchemaText
from gateway.protocol.tool_choice import Choice, NamedTool, tool_use_of
from gateway.protocol.tools import MAX_TOOLS, object_schema
from gateway.protocol.validation import RequestModel, invalid, only_neutral
from gateway.tool_use import Tool, ToolMode, ToolUse
from model_registry.contract import ChatMessage

MIN_THINKING_TOKENS = 1024
_MODES = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "tool": ToolMode.NAMED, "none": ToolMode.NONE}


def _custom(kind: str | None) -> str | None:
    if kind not in (None, "custom"):
        raise invalid(
            "unsupported_value",
            f"Unsupported value for '{{param}}': '{shortened(str(kind))}' tools are not supported. Use 'custom'.",
        )
    return kind


def _thinking(kind: str) -> str:
    if kind == "between_tools":
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{kind}' is not supported.")
    if kind not in ("enabled", "disabled", "adaptive"):
        supported = "'enabled', 'disabled', 'adaptive'"
        raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {supported}.")
    return kind


class _OfKind(RequestModel):
    """What is looked at first: tools of other kinds are not custom ones that miss something."""

    type: Annotated[str | None, AfterValidator(_custom), WithJsonSchema({"enum": ["custom", None]})] = Field(
        None, description="Only tools of the client's own are called."
    )


class ToolParam(_OfKind):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$", description="How it is called.")
    description: str | None = Field(None, description="What it does.")
    input_schema: Annotated[dict[str, Any], AfterValidator(object_schema)] = Field(
        description="JSON schema of its input."
    )
    strict: bool | None = Field(None, description="Have the input follow the schema, by constrained decoding.")
    cache_control: Any = Field(None, description=CACHE_CONTROL)

    allowed_callers: only_neutral(["direct"]) = None  # type: ignore[valid-type]
    defer_loading: only_neutral(False) = None  # type: ignore[valid-type]
    eager_input_streaming: only_neutral(True) = None  # type: ignore[valid-type]
    input_examples: only_neutral([]) = None  # type: ignore[valid-type]

    def as_tool(self) -> Tool:
        return Tool(self.name, self.description, self.input_schema, bool(self.strict))


class ToolChoice(RequestModel):
    type: Literal["auto", "any", "tool", "none"] = Field(description="Whether a tool may, must or must not be called.")
    name: str | None = Field(None, description="Which one, only with the type `tool`, which needs it.")
    disable_parallel_tool_use: bool | None = Field(None, description="At most one call in an answer.")


class Thinking(RequestModel):
    type: Annotated[
        str, AfterValidator(_thinking), WithJsonSchema({"type": "string", "enum": ["enabled", "disabled", "adaptive"]})
    ] = Field(description="Whether to think; `adaptive` leaves it to the model's chat template.")
    budget_tokens: int | None = Field(
        None, ge=MIN_THINKING_TOKENS, description="Accepted without effect: `max_tokens` bounds thinking and answer."
    )

    display: only_neutral("summarized") = None  # type: ignore[valid-type]


class OutputFormat(RequestModel):
    type: Literal["json_schema"] = Field(description="JSON that fits a schema.")
    schema_: SchemaText = Field(alias="schema", description="The schema.")


class OutputConfig(RequestModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much to think, where the model's chat template knows about it."
    )
    format: OutputFormat | None = Field(None, description="What the answer's text must be.")


class Metadata(RequestModel):
    user_id: str | None = Field(None, description="Requests with the same id go to the same replica where load allows.")


class MessageFields(Body):
    """What a prompt is made of."""

    messages: list[MessageParam] = Field(
        min_length=1, description="The conversation so far. The answer goes on with a last message of an assistant."
    )
    system: System = Field(None, description="What the model is told before everything else: a text, or text blocks.")
    tools: list[ToolParam] | None = Field(None, max_length=MAX_TOOLS, description="What the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Whether it may, must, or which.")
    thinking: Thinking | None = Field(
        None, description="Whether to think. Without it, as the model's chat template has it."
    )
    output_config: OutputConfig | None = Field(None, description="The form of the answer, and how hard to try.")

    speed: only_neutral("standard") = None  # type: ignore[valid-type]

    without_effect: ClassVar[dict[str, str]] = {"cache_control": "prefixes are cached as long as there is room"}

    def check_together(self) -> None:
        # Whatever is wrong with these is to be said now.
        _ = self.tool_use
        last = self.conversation[-1]
        if last.role == "assistant" and (last.tool_calls or not last.content):
            raise InvalidRequestError(
                "Invalid 'messages': the last one is an assistant's, so the answer goes on with its text, but it has "
                f"{'calls' if last.tool_calls else 'none'}. Add what comes after it, or leave it out.",
                param="messages",
                code="invalid_value",
            )

    @cached_property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """Raises `InvalidRequestError` where a block does not belong."""
        return conversation_of(self.system, self.messages)

    @property
    def continues_final_message(self) -> bool:
        return self.conversation[-1].role == "assistant"

    @cached_property
    def tool_use(self) -> ToolUse:
        """Raises `InvalidRequestError` where tools and choice do not go together."""
        choice = self.tool_choice or ToolChoice(type="auto")
        if (choice.name is not None) != (choice.type == "tool"):
            raise InvalidRequestError(
                "Invalid 'tool_choice.name': the type 'tool' needs it, and others have none.",
                param="tool_choice.name",
                code="invalid_value",
            )
        named = None if choice.name is None else [NamedTool(choice.name, "tool_choice.name")]
        return tool_use_of(
            [tool.as_tool() for tool in self.tools or ()],
            Choice(_MODES[choice.type], named),
            parallel=not choice.disable_parallel_tool_use,
            name_param="tools[{}].name",
        )

    @property
    def wants_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.type == "enabled"

    @property
    def effort(self) -> str | None:
        return None if self.output_config is None else self.output_config.effort

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template; which of the two names of thinking it knows, it alone knows."""
        variables: dict[str, Any] = {} if self.effort is None else {"reasoning_effort": self.effort}
        if self.thinking is None or self.thinking.type == "adaptive":
            return variables
        return variables | {"enable_thinking": self.wants_thinking, "thinking": self.wants_thinking}


class CountTokensRequest(MessageFields):
    """How many tokens a conversation has."""


class MessageRequest(MessageFields, AnsweredBody):
    """Answer a conversation."""

    max_tokens: int = Field(ge=1, le=INT32_MAX, description="Tokens generated at most.")
    stop_sequences: list[StopString] | None = Field(
        None, max_length=MAX_STOPS, description="Strings that end the generation; never shown."
    )
    temperature: float | None = Field(None, ge=0, le=1, description="Spread of sampling; 0 is greedy.")
    top_p: float | None = Field(None, ge=0, le=1, description="Sample among the likeliest tokens of this probability.")
    top_k: int | None = Field(None, ge=0, le=INT32_MAX, description="Sample among this many likeliest tokens; 0: all.")
    metadata: Metadata | None = Field(None, description="Who asks.")

    container: only_neutral() = None  # type: ignore[valid-type]
    diagnostics: only_neutral() = None  # type: ignore[valid-type]
    inference_geo: only_neutral() = None  # type: ignore[valid-type]

    without_effect: ClassVar[dict[str, str]] = MessageFields.without_effect | {"service_tier": "Anthropic's price list"}

    @property
    def session(self) -> str | None:
        return None if self.metadata is None else self.metadata.user_id

    @property
    def sampling(self) -> SamplingFields:
        """How to generate, in the words of all endpoints."""
        return SamplingFields(
            model=self.model,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
        )

    @property
    def schema_text(self) -> str | None:
        """What the text must fit, as JSON."""
        wanted = None if self.output_config is None else self.output_config.format
        return None if wanted is None else wanted.schema_
