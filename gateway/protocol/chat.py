"""The body of POST /v1/chat/completions. Knows OpenAI's wire format only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Discriminator, Field, Tag

from gateway.errors import InvalidRequestError, MissingParameterError, UnsupportedParameterError, shortened
from gateway.protocol.fields import INT32_MAX, INT64_MAX, GenerationFields
from gateway.protocol.structured import ResponseFormat
from gateway.protocol.tools import MAX_TOOLS, FunctionType, ToolChoice, ToolDefinition, chat_tool_use
from gateway.protocol.validation import LIST, TEXT, RequestModel, invalid, only_neutral, text_or_list
from gateway.tool_use import ToolUse
from model_registry.contract import ChatMessage, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLES_LATER = ("function",)
PARTS_LATER = ("image_url", "input_audio", "file", "refusal", "video_url", "audio_url")
MAX_TOP_LOGPROBS = 20
MAX_TEMPLATE_KWARGS = 16
MAX_TEMPLATE_STRING = 256
_TEMPLATE_VARIABLE: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")
RENDERERS_OWN: Final = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
)
"""Variables of templates that a request sets by fields of their own, or not at all."""
REASONING_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _known_role(role: str) -> str:
    if role in ROLES:
        return role
    supported = ", ".join(f"'{one}'" for one in ROLES)
    if role in ROLES_LATER:
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{role}' messages are not supported.")
    raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {supported}.")


def _text_part(kind: str) -> str:
    if kind == "text":
        return kind
    if kind in PARTS_LATER:
        raise invalid("unsupported_value", f"Unsupported value for '{{param}}': '{kind}' parts are not supported.")
    raise invalid("invalid_value", "Invalid value for '{param}'. Supported values are: 'text'.")


class TextPart(RequestModel):
    type: Annotated[str, AfterValidator(_text_part)] = Field(
        description="What it is.", json_schema_extra={"enum": ["text"]}
    )
    text: str = Field(description="What it says.")
    prompt_cache_breakpoint: Any = Field(
        None, description="Accepted without effect: prefixes are cached as long as there is room."
    )


Content = Annotated[Annotated[str, Tag(TEXT)] | Annotated[list[TextPart], Tag(LIST)], Discriminator(text_or_list)]


class CalledFunction(RequestModel):
    name: str = Field(description="The function's name.")
    arguments: str = Field(description="Its arguments as the model wrote them: JSON, as text.")
    parsed_arguments: Any = Field(
        None, description="Without effect: the arguments once more, as the openai client's helpers add them to calls."
    )


class MessageToolCall(RequestModel):
    id: str = Field(description="What the answer to the call names in `tool_call_id`.")
    type: FunctionType = Field("function", description="What is called.")
    function: CalledFunction = Field(description="The function, and what for.")
    index: int | None = Field(
        None, description="Without effect: of a call put together from a stream's deltas; the order says the same."
    )

    def as_call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)


class Message(RequestModel):
    """One message. What OpenAI's replies carry beside what is read here is taken back when it is empty."""

    role: Annotated[str, AfterValidator(_known_role)] = Field(
        description="Who said it; a developer is a system.", json_schema_extra={"enum": list(ROLES)}
    )
    content: Content | None = Field(None, description="A text, or parts of one, which become lines.")
    tool_calls: list[MessageToolCall] | None = Field(None, description="Of an assistant: the calls it made.")
    tool_call_id: str | None = Field(
        None, description="Of a tool, which needs it: the id of the call that this message answers."
    )
    name: str | None = Field(None, description="Who said it, for chat templates that tell speakers apart.")
    reasoning: str | None = Field(None, description="Of an assistant: what it thought before it answered.")
    reasoning_content: str | None = Field(None, description="Another name of `reasoning`.")

    annotations: only_neutral([]) = None  # type: ignore[valid-type]
    audio: only_neutral() = None  # type: ignore[valid-type]
    function_call: only_neutral() = None  # type: ignore[valid-type]
    parsed: Any = Field(
        None, description="Without effect: the content once more, as the openai client's helpers add it."
    )
    refusal: only_neutral() = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        """All its text; parts are lines, as vLLM joins them."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)

    def check_in(self, path: str, called: dict[str, str]) -> None:
        """Raises `InvalidRequestError` unless it has what its role needs, and only that; `called` are the names of the
        functions that were called before, by the ids of the calls."""
        self._check_content(path)
        self._check_fields_of_role(path)
        if self.role == "tool":
            self._check_answers(path, called)
        if self.reasoning is not None and self.reasoning_content not in (None, self.reasoning):
            raise InvalidRequestError(
                f"Invalid '{path}.reasoning_content': it differs from 'reasoning', its other name. Give one of them.",
                param=f"{path}.reasoning_content",
                code="invalid_value",
            )

    def _check_content(self, path: str) -> None:
        if self.content is not None or self.tool_calls:
            return
        param = f"{path}.content"
        if "content" not in self.model_fields_set:
            raise MissingParameterError(param)
        raise InvalidRequestError(
            f"Invalid type for '{param}': expected a string, but got null instead.", param=param, code="invalid_type"
        )

    def _check_fields_of_role(self, path: str) -> None:
        owners = {
            "tool_calls": (self.tool_calls, "assistant"),
            "reasoning": (self.reasoning, "assistant"),
            "reasoning_content": (self.reasoning_content, "assistant"),
            "tool_call_id": (self.tool_call_id, "tool"),
        }
        for field, (value, role) in owners.items():
            if value and self.role != role:
                raise UnsupportedParameterError(
                    f"Unsupported parameter: '{path}.{field}' is read in '{role}' messages only. Leave it out.",
                    param=f"{path}.{field}",
                )

    def _check_answers(self, path: str, called: dict[str, str]) -> None:
        param = f"{path}.tool_call_id"
        if self.tool_call_id is None:
            raise MissingParameterError(param)
        if self.tool_call_id not in called:
            raise InvalidRequestError(
                f"Invalid '{param}': '{shortened(self.tool_call_id)}' is no call that an earlier message has in its "
                "'tool_calls'.",
                param=param,
                code="invalid_value",
            )
        if self.name and self.name != called[self.tool_call_id]:
            raise InvalidRequestError(
                f"Invalid '{path}.name': the call was to '{shortened(called[self.tool_call_id])}'.",
                param=f"{path}.name",
                code="invalid_value",
            )


def conversation_of(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """The messages as prompts are made of them. Raises `InvalidRequestError` where one does not belong."""
    called: dict[str, str] = {}
    conversation = []
    for index, message in enumerate(messages):
        message.check_in(f"messages[{index}]", called)
        calls = tuple(call.as_call() for call in message.tool_calls or ())
        called.update({call.id: call.name for call in calls})
        conversation.append(
            ChatMessage(
                role="system" if message.role == "developer" else message.role,
                content=message.text,
                reasoning=message.reasoning or message.reasoning_content or "",
                tool_calls=calls,
                tool_call_id=message.tool_call_id or "",
                name=called[message.tool_call_id] if message.tool_call_id else message.name or "",
            )
        )
    return tuple(conversation)


def check_can_go_on(last: Message) -> None:
    """Raises `InvalidRequestError` unless an answer can go on with this message."""
    if last.role != "assistant" or last.tool_calls or not last.text:
        raise InvalidRequestError(
            "Invalid 'continue_final_message': the last message must be an assistant's, with text and without tool "
            "calls.",
            param="continue_final_message",
            code="invalid_value",
        )


def _template_kwargs(variables: dict[str, Any]) -> dict[str, Any]:
    for name, value in variables.items():
        if not _TEMPLATE_VARIABLE.fullmatch(name) or name in RENDERERS_OWN:
            raise invalid(
                "invalid_value",
                f"Invalid key in '{{param}}': '{shortened(name)}' is no variable that a request may set.",
            )
        if not _is_scalar(value):
            raise invalid(
                "invalid_value",
                f"Invalid value of '{shortened(name)}' in '{{param}}': expected a boolean, a number of at most 64 "
                f"bits, null, or a string of at most {MAX_TEMPLATE_STRING} characters.",
            )
    return variables


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEMPLATE_STRING
    if isinstance(value, int):
        return -INT64_MAX - 1 <= value <= INT64_MAX
    return value is None or isinstance(value, float)


def _reasoning_effort(effort: str | None) -> str | None:
    if effort is not None and effort not in REASONING_EFFORTS:
        supported = ", ".join(f"'{one}'" for one in REASONING_EFFORTS)
        raise invalid("invalid_value", f"Invalid value for '{{param}}'. Supported values are: {supported}.")
    return effort


Tools = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None
TemplateKwargs = (
    Annotated[dict[str, Any], AfterValidator(_template_kwargs), Field(max_length=MAX_TEMPLATE_KWARGS)] | None
)


class ChatCompletionRequest(GenerationFields):
    """Answer a conversation."""

    messages: list[Message] = Field(min_length=1, description="The conversation so far.")
    max_completion_tokens: int | None = Field(None, ge=1, le=INT32_MAX, description="Today's name of `max_tokens`.")
    tools: Tools = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice = Field(
        None, description="`none`, `auto`, `required`, a function by its name, or the functions that are allowed."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether one answer may have several calls; true.")
    chat_template_kwargs: TemplateKwargs = Field(None, description="Variables of the model's chat template.")
    reasoning_effort: Annotated[str | None, AfterValidator(_reasoning_effort)] = Field(
        None,
        description="How much to think, where the model's chat template knows about it.",
        json_schema_extra={"enum": [None, *REASONING_EFFORTS]},
    )
    add_generation_prompt: bool | None = Field(
        None, description="False only with `continue_final_message`, where it may also be left out."
    )
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message, an assistant's, instead of answering it."
    )
    logprobs: bool | None = Field(None, description="Tell how likely each generated token was.")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="Likeliest tokens told beside it, with `logprobs` only."
    )

    response_format: ResponseFormat | None = Field(
        None, description="Any text, any JSON object, or JSON that fits a schema."
    )

    audio: only_neutral() = None  # type: ignore[valid-type]
    function_call: only_neutral("none", "auto") = None  # type: ignore[valid-type]
    functions: only_neutral([]) = None  # type: ignore[valid-type]
    modalities: only_neutral(["text"]) = None  # type: ignore[valid-type]
    prediction: only_neutral() = None  # type: ignore[valid-type]
    verbosity: only_neutral() = None  # type: ignore[valid-type]
    web_search_options: only_neutral() = None  # type: ignore[valid-type]

    def check_together(self) -> None:
        super().check_together()
        if self.response_format is not None:
            self.response_format.check_together()
            if self.structured_outputs is not None and self.response_format.type != "text":
                raise InvalidRequestError(
                    "Invalid 'structured_outputs': 'response_format' says what the text must be, too. Give one.",
                    param="structured_outputs",
                    code="invalid_value",
                )
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequestError(
                f"Invalid 'max_completion_tokens': {self.max_completion_tokens} differs from 'max_tokens' "
                f"({self.max_tokens}), its older name. Give one of them.",
                param="max_completion_tokens",
                code="invalid_value",
            )
        if self.top_logprobs and not self.logprobs:  # in OpenAI's words, which give it no code
            raise InvalidRequestError(
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", param="top_logprobs"
            )
        self._check_continuation()
        # Whatever is wrong with these is to be said now.
        _ = self.conversation, self.tool_use, self.template_kwargs

    def _check_continuation(self) -> None:
        if not self.continue_final_message:
            if self.add_generation_prompt is False:
                raise InvalidRequestError(
                    "Invalid 'add_generation_prompt': it may be false only when 'continue_final_message' is true.",
                    param="add_generation_prompt",
                    code="invalid_value",
                )
            return
        if self.add_generation_prompt:
            raise InvalidRequestError(
                "Invalid 'add_generation_prompt': an answer either goes on with the last message or opens one of its "
                "own. Leave it out, or set 'continue_final_message' to false.",
                param="add_generation_prompt",
                code="invalid_value",
            )
        check_can_go_on(self.messages[-1])

    @cached_property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """Raises `InvalidRequestError` where a message does not belong."""
        return conversation_of(self.messages)

    @cached_property
    def tool_use(self) -> ToolUse:
        """Raises `InvalidRequestError` where tools and choice do not go together."""
        return chat_tool_use(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls is not False)

    @cached_property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template. Raises `InvalidRequestError` where two fields contradict."""
        given = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is None:
            return given
        if given.setdefault("reasoning_effort", self.reasoning_effort) != self.reasoning_effort:
            raise InvalidRequestError(
                "Invalid 'reasoning_effort': it differs from the one in 'chat_template_kwargs'. Give one of them.",
                param="reasoning_effort",
                code="invalid_value",
            )
        return given

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
