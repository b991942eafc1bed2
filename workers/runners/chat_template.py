"""A model's chat template, and how a client's text goes through it without becoming control tokens.

Rendering is Transformers' own sandboxed Jinja, for every kind of tokenizer. Text that a client wrote is escaped before
it enters a template: whatever in it looks like a special token is hidden behind a mark and revealed after the split.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from model_registry.contract import ChatMessage, ChatPrompt, FaultKind, RequestFaultError, TextPrompt


class ChatTemplate:
    """Messages to text."""

    def __init__(self, template: str | None, variables: Mapping[str, Any]) -> None:
        """`variables` are what templates expect beside the messages, such as `bos_token`."""
        self._template = template
        self._variables = dict(variables)

    def render(self, prompt: ChatPrompt, escape: Escape) -> str:
        """The conversation as text that opens the answer. Raises `RequestFaultError` when the template refuses it."""
        if not self._template:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                "This model has no chat template of its own; its registry entry must set prompt_format.",
                "messages",
            )
        messages = [_as_dict(message, escape) for message in prompt.messages]
        try:
            (text,), _ = render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                add_generation_prompt=prompt.opens_answer,
                continue_final_message=prompt.continues_final_message,
                **self._variables,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST, f"The model's chat template refused the messages: {error}", "messages"
            ) from error
        return str(text)


class SpecialTokens:
    """The special tokens of a vocabulary as text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        longest_first = sorted(ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def id_of(self, piece: str) -> int | None:
        """The special token that this is, None for other text."""
        return self._ids.get(piece)

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

    def reveal(self, text: str) -> str:
        return re.sub(f"\ue000{self._nonce}-(\\d+)\ue001", lambda match: self.hidden[int(match[1])], text)

    def join(self, prompt: TextPrompt) -> str:
        """The prompt's segments as one text, those of the client escaped."""
        return "".join(self._segments(prompt))

    def _segments(self, prompt: TextPrompt) -> Iterable[str]:
        return (segment.text if segment.trusted else self.hide(segment.text) for segment in prompt.segments)

    def _mark(self, match: re.Match[str]) -> str:
        self.hidden.append(match[0])
        return f"\ue000{self._nonce}-{len(self.hidden) - 1}\ue001"


def _as_dict(message: ChatMessage, escape: Escape) -> dict[str, str]:
    return {"role": message.role, "content": escape.hide(message.content)}
