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
_NONCE_DIGITS: Final = 20
_INDEX_DIGITS: Final = 9


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
        given = self._template_kwargs(prompt.template_kwargs)
        try:
            messages = [self._as_dict(message, escape) for message in prompt.messages]
            tools, given = escape.hide_all(list(prompt.tools)), escape.hide_all(given)
        except RecursionError as error:
            raise _refusal("they are nested too deeply.") from error
        text = self._rendered(
            messages,
            tools=tools or None,
            add_generation_prompt=prompt.opens_answer and not prompt.continues_final_message,
            continue_final_message=prompt.continues_final_message,
            **given,
        )
        return escape.settle(text)

    def _rendered(self, messages: list[dict[str, Any]], **given: Any) -> str:
        """Raises `RequestFaultError` for whatever goes wrong: a template is a program that came with the model."""
        try:
            (text,), _ = render_jinja_template(
                conversations=[messages], chat_template=self._template, **(given | self._variables)
            )
        except Exception as error:
            raise _refusal(first_line(error)) from error
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
            text = self._rendered([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
        except RequestFaultError:
            return False  # some templates want other conversations than this one
        return text.rstrip().endswith(REASONING_SYNTAX[reasoning].opening)

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
    except Exception:  # noqa: BLE001  whatever the model's template makes Jinja raise; rendering will say it again
        return frozenset()


def _refusal(reason: str) -> RequestFaultError:
    return RequestFaultError(
        FaultKind.INVALID_REQUEST, f"The model's chat template refused the messages: {reason}", "messages"
    )


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
        self._longest = len(longest_first[0]) if longest_first else 0
        self._beginnings = frozenset(name[:end] for name in ids for end in range(1, len(name)))
        self._ends = frozenset(name[start:] for name in ids for start in range(1, len(name)))
        self._insides = frozenset(name[1:-1] for name in ids if len(name) > 2)

    def id_of(self, piece: str) -> int | None:
        """The special token that this is, None for other text."""
        return self._ids.get(piece)

    def ids_without(self, names: Collection[str]) -> frozenset[int]:
        """All of them but those of these names."""
        return frozenset(token_id for name, token_id in self._ids.items() if name not in names)

    def all_in(self, text: str) -> list[str]:
        return self.pattern.findall(text) if self.pattern else []

    def may_end_in(self, text: str) -> bool:
        """Whether one that began in what comes before the text may end in it, or, by one character, after it."""
        return text in self._insides or any(text[:size] in self._ends for size in self._sizes(text))

    def may_begin_in(self, text: str) -> bool:
        """Whether one may begin in the text and end in what comes after it."""
        return any(text[-size:] in self._beginnings for size in self._sizes(text))

    def _sizes(self, text: str) -> range:
        return range(1, min(self._longest, len(text) + 1))

    def split(self, text: str) -> list[str]:
        """The text cut before and after each special token."""
        if self.pattern is None:
            return [text]
        return [piece for piece in re.split(f"({self.pattern.pattern})", text) if piece]


class Escape:
    """Hides special tokens in a client's text behind marks that no client can guess, for one prompt.

    Also the edges of a text that could be part of one: what stands next to it may be the rest.
    """

    def __init__(self, special: SpecialTokens) -> None:
        self._special = special
        self._tokens = _Marks()
        self._edges = _Marks()

    @property
    def hidden(self) -> list[str]:
        return [*self._tokens.hidden.values(), *self._edges.hidden.values()]

    def hide(self, text: str) -> str:
        if self._special.pattern is None:
            return text
        body = text.strip()  # as many templates trim it
        before, _, after = text.partition(body) if body else (text, "", "")
        first = last = ""
        if self._special.may_end_in(body):
            first, body = self._edges.hide(body[0]), body[1:]
        if self._special.may_begin_in(body):
            last, body = self._edges.hide(body[-1]), body[:-1]
        inner = self._special.pattern.sub(lambda match: self._tokens.hide(match[0]), body)
        return f"{before}{first}{inner}{last}{after}"

    def hide_all(self, value: Any) -> Any:
        """The same in every string of a JSON value, keys included."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, list):
            return [self.hide_all(item) for item in value]
        if isinstance(value, dict):
            return {self.hide(key): self.hide_all(item) for key, item in value.items()}
        return value

    def settle(self, text: str) -> str:
        """The joined text with its edges shown, if that makes no special token: most are what they look like."""
        if not self._edges.hidden:
            return text
        shown = self._edges.reveal(text)
        if self._special.all_in(shown) != self._special.all_in(text):
            return text
        self._edges.hidden.clear()
        return shown

    def reveal(self, text: str) -> str:
        return self._tokens.reveal(self._edges.reveal(text))

    def join(self, prompt: TextPrompt) -> str:
        """The prompt's segments as one text, those of the client escaped."""
        return self.settle("".join(self._segments(prompt)))

    def _segments(self, prompt: TextPrompt) -> Iterable[str]:
        return (segment.text if segment.trusted else self.hide(segment.text) for segment in prompt.segments)


class _Marks:
    """What stands for hidden texts. Digits only: whatever a template does to a text, it leaves them as they are."""

    def __init__(self) -> None:
        self._nonce = f"{secrets.randbelow(10**_NONCE_DIGITS):0{_NONCE_DIGITS}}"
        self._pattern = re.compile(f"{self._nonce}[0-9]{{{_INDEX_DIGITS}}}")
        self.hidden: dict[str, str] = {}
        """The text behind each mark."""

    def hide(self, text: str) -> str:
        mark = f"{self._nonce}{len(self.hidden):0{_INDEX_DIGITS}}"
        self.hidden[mark] = text
        return mark

    def reveal(self, text: str) -> str:
        return self._pattern.sub(lambda match: self.hidden.get(match[0], match[0]), text) if self.hidden else text
