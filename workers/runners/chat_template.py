"""A model's chat template, and how a client's text goes through it without becoming control tokens.

Rendering is Transformers' own sandboxed Jinja, for every kind of tokenizer. Text that a client wrote is escaped before
it enters a template: whatever in it looks like a special token is hidden behind a mark and revealed after the split.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from jinja2.exceptions import TemplateError
from jinja2.meta import find_undeclared_variables
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from model_registry.contract import ChatMessage, ChatPrompt, FaultKind, RequestFaultError, TextPrompt, ToolCall
from model_registry.tool_formats import (
    REASONING_SYNTAX,
    AnswerFormat,
    ReasoningFormat,
    ToolFormat,
    reasoning_format_of,
    tool_format_of,
)
from workers.errors import first_line

_WITHOUT_THINKING: Final = {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"}
"""What a model that never thinks honours in any case."""
_MISTRAL_ID_LENGTH: Final = 9
"""Mistral's templates refuse other ids of calls."""


class ChatTemplate:
    """Messages to text."""

    def __init__(self, template: str | None, variables: Mapping[str, Any]) -> None:
        """`variables` are what templates expect beside the messages, such as `bos_token`."""
        self._template = template or ""
        self._variables = dict(variables)
        self._read = _variables_of(self._template)
        self.answer_format = self._answer_format()

    def render(self, prompt: ChatPrompt, escape: Escape) -> str:
        """The conversation as text that opens the answer. Raises `RequestFaultError` when the template refuses it."""
        if not self._template:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                "This model has no chat template of its own; its registry entry must set prompt_format.",
                "messages",
            )
        given = escape.hide_all(self._template_kwargs(prompt.template_kwargs))
        try:
            (text,), _ = render_jinja_template(
                conversations=[[self._as_dict(message, escape) for message in prompt.messages]],
                tools=escape.hide_all(list(prompt.tools)) or None,
                chat_template=self._template,
                add_generation_prompt=prompt.opens_answer and not prompt.continues_final_message,
                continue_final_message=prompt.continues_final_message,
                **(given | self._variables),
            )
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                f"The model's chat template refused the messages: {first_line(error)}",
                "messages",
            ) from error
        return str(text)

    def _template_kwargs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of a request that the template reads. Raises `RequestFaultError` for one that would change
        nothing, unless there is nothing to change."""
        taken = {}
        never_thinks = self.answer_format.reasoning is ReasoningFormat.NONE
        for name, value in given.items():
            if name in self._read and name not in self._variables:
                taken[name] = value
            elif (name, value) == ("reasoning_effort", "none") and "enable_thinking" in self._read:
                taken.setdefault("enable_thinking", False)
            elif not never_thinks or (name, value) not in _WITHOUT_THINKING.items():
                param = name if name == "reasoning_effort" else f"chat_template_kwargs.{name}"
                raise RequestFaultError(
                    FaultKind.INVALID_REQUEST,
                    f"Invalid '{param}': this model's chat template does not know it. Leave it out.",
                    param,
                )
        return taken

    def _answer_format(self) -> AnswerFormat:
        reasoning = reasoning_format_of(self._template)
        return AnswerFormat(tool_format_of(self._template, self._read), reasoning, self._opens(reasoning))

    def _opens(self, reasoning: ReasoningFormat) -> bool:
        """Whether answers begin inside the reasoning, as far as one conversation can tell."""
        if reasoning is ReasoningFormat.NONE:
            return False
        try:
            (text,), _ = render_jinja_template(
                conversations=[[{"role": "user", "content": "Hi"}]],
                chat_template=self._template,
                add_generation_prompt=True,
                **self._variables,
            )
        except (TemplateError, TypeError, ValueError):
            return False  # some templates want other conversations than this one
        return str(text).rstrip().endswith(REASONING_SYNTAX[reasoning].opening)

    def _as_dict(self, message: ChatMessage, escape: Escape) -> dict[str, Any]:
        """As Transformers wants messages: without what is not there, and with arguments as mappings."""
        result: dict[str, Any] = {"role": message.role}
        if message.content or not message.tool_calls:
            result["content"] = escape.hide(message.content)
        if message.reasoning:
            result["reasoning_content"] = escape.hide(message.reasoning)
        if message.tool_calls:
            result["tool_calls"] = [escape.hide_all(self._call_as_dict(call)) for call in message.tool_calls]
        if message.tool_call_id:
            result["tool_call_id"] = escape.hide(self._call_id(message.tool_call_id))
        if message.name:
            result["name"] = escape.hide(message.name)
        return result

    def _call_as_dict(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": _parsed(call.arguments)}
        return {"id": self._call_id(call.id), "type": "function", "function": function}

    def _call_id(self, call_id: str) -> str:
        takes_short = self.answer_format.tools in (ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS)
        if not takes_short or (len(call_id) == _MISTRAL_ID_LENGTH and call_id.isalnum()):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:_MISTRAL_ID_LENGTH]


def _variables_of(template: str) -> frozenset[str]:
    """Names that a template reads and may be given; none of one that is no template, which rendering will say."""
    try:
        environment = _compile_jinja_template(template).environment
        return frozenset(find_undeclared_variables(environment.parse(template)))
    except TemplateError:
        return frozenset()


def _parsed(arguments: str) -> Any:
    """A mapping, or the text where a model wrote something else."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


class SpecialTokens:
    """The special tokens of a vocabulary as text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        longest_first = sorted(ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def id_of(self, piece: str) -> int | None:
        """The special token that this is, None for other text."""
        return self._ids.get(piece)

    def ids_without(self, names: Collection[str]) -> frozenset[int]:
        """All of them but those of these names."""
        return frozenset(token_id for name, token_id in self._ids.items() if name not in names)

    def split(self, text: str) -> list[str]:
        """The text cut before and after each special token."""
        if self.pattern is None:
            return [text]
        return [piece for piece in re.split(f"({self.pattern.pattern})", text) if piece]


class Escape:
    """Hides special tokens in a client's text behind marks that no client can guess, for one prompt."""

    def __init__(self, special: SpecialTokens) -> None:
        self._special = special.pattern
        self._nonce = secrets.token_hex(8)
        self.hidden: list[str] = []

    def hide(self, text: str) -> str:
        return self._special.sub(self._mark, text) if self._special else text

    def hide_all(self, value: Any) -> Any:
        """The same in every string of a JSON value, keys included."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_all(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide_all(item) for key, item in value.items()}
        return value

    def reveal(self, text: str) -> str:
        return re.sub(f"{self._nonce}x(\\d+)x", lambda match: self.hidden[int(match[1])], text)

    def join(self, prompt: TextPrompt) -> str:
        """The prompt's segments as one text, those of the client escaped."""
        return "".join(self._segments(prompt))

    def _segments(self, prompt: TextPrompt) -> Iterable[str]:
        return (segment.text if segment.trusted else self.hide(segment.text) for segment in prompt.segments)

    def _mark(self, match: re.Match[str]) -> str:
        self.hidden.append(match[0])
        # Letters and digits only: whatever a template does to text, JSON included, leaves them as they are.
        return f"{self._nonce}x{len(self.hidden) - 1}x"
