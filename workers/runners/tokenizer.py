"""A Hugging Face tokenizer behind the engine's `Tokenizer` seam.

Uses the Rust tokenizer underneath directly: it is safe on several threads, unlike its Python wrapper. Special tokens in
text that a client wrote are text: only the model's template and a client's raw prompt may hold control tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer as RustTokenizer

from model_registry.contract import (
    ChatMessage,
    ChatPrompt,
    FaultKind,
    Prompt,
    RequestFaultError,
    TextPrompt,
    TokenPrompt,
)
from workers.errors import UnsupportedModelError


class HuggingFaceTokenizer:
    """Encodes prompts and decodes tokens for one model."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        """`tokenizer` is a fast Transformers tokenizer, `vocab_size` the width of the model's logits."""
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(f"{type(tokenizer).__name__} has no fast tokenizer (tokenizer.json)")
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self._template_owner = tokenizer
        self._rust: RustTokenizer = RustTokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain: RustTokenizer = RustTokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        for rust in (self._rust, self._plain):
            rust.no_padding()
            rust.no_truncation()
        self._special_ids = {
            token.content: token_id
            for token_id, token in self._rust.get_added_tokens_decoder().items()
            if token.special
        }
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._opening_ids = self._find_opening_ids()

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, TokenPrompt):
            return self._check_token_ids(prompt.token_ids)
        escape = _Escape(self._special)
        if isinstance(prompt, TextPrompt):
            texts = (segment.text if segment.trusted else escape.hide(segment.text) for segment in prompt.segments)
            return self._with_opening(self._encode("".join(texts), escape))
        return self._encode(self._render(prompt, escape), escape)

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._rust.decode(token_ids, skip_special_tokens=True)
        return text

    def _encode(self, text: str, escape: _Escape) -> list[int]:
        if not escape.hidden:
            return list(self._rust.encode(text, add_special_tokens=False).ids)
        token_ids: list[int] = []
        for piece in self._split_at_special_tokens(text):
            if piece in self._special_ids:
                token_ids.append(self._special_ids[piece])
            else:
                token_ids.extend(self._plain.encode(escape.reveal(piece), add_special_tokens=False).ids)
        return token_ids

    def _split_at_special_tokens(self, text: str) -> list[str]:
        if self._special is None:
            return [text]
        return [piece for piece in re.split(f"({self._special.pattern})", text) if piece]

    def _render(self, prompt: ChatPrompt, escape: _Escape) -> str:
        messages = [_as_dict(message, escape) for message in prompt.messages]
        if not self._template_owner.chat_template:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                "This model has no chat template of its own; its registry entry must set prompt_format.",
                "messages",
            )
        try:
            text: str = self._template_owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST, f"The model's chat template refused the messages: {error}", "messages"
            ) from error
        return text

    def _with_opening(self, token_ids: list[int]) -> list[int]:
        """Raw text begins as the model was trained, unless its author already wrote that."""
        opening = self._opening_ids
        return token_ids if token_ids[: len(opening)] == opening else opening + token_ids

    def _find_opening_ids(self) -> list[int]:
        """What the tokenizer itself puts before any text, such as a BOS token."""
        with_special = self._rust.encode("a").ids
        without = self._rust.encode("a", add_special_tokens=False).ids
        return list(with_special[: with_special.index(without[0])]) if without else []

    def _check_token_ids(self, token_ids: Sequence[int]) -> list[int]:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise RequestFaultError(
                    FaultKind.INVALID_REQUEST,
                    f"Token id {token_id} is outside the model's vocabulary of {self.vocab_size} tokens.",
                    "prompt",
                )
        return list(token_ids)


class _Escape:
    """Hides special tokens in a client's text behind marks that no client can guess, for one prompt."""

    def __init__(self, special: re.Pattern[str] | None) -> None:
        self._special = special
        self._nonce = secrets.token_hex(8)
        self.hidden: list[str] = []

    def hide(self, text: str) -> str:
        return self._special.sub(self._mark, text) if self._special else text

    def reveal(self, text: str) -> str:
        return re.sub(f"\ue000{self._nonce}-(\\d+)\ue001", lambda match: self.hidden[int(match[1])], text)

    def _mark(self, match: re.Match[str]) -> str:
        self.hidden.append(match[0])
        return f"\ue000{self._nonce}-{len(self.hidden) - 1}\ue001"


def _as_dict(message: ChatMessage, escape: _Escape) -> dict[str, str]:
    return {"role": message.role, "content": escape.hide(message.content)}
