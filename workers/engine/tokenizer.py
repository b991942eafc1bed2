"""The seam between text and token ids, as the engine sees it. Knows no library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from model_registry.contract import FaultKind, Prompt, RequestFaultError


@dataclass(frozen=True, slots=True)
class Piece:
    """One token by itself."""

    text: bytes
    """What it adds to a text, in UTF-8, perhaps part of a character only; the name of a special token, which adds
    nothing."""
    is_special: bool = False


Decode = Callable[[Sequence[int]], str]


class Tokenizer(Protocol):
    """Text to ids and back. Called from several threads at once."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 ≤ id < vocab_size: the width of the model's logits."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a generation."""

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids. Raises `RequestFaultError` when the client's prompt cannot be encoded."""

    def encode_text(self, text: str) -> list[int]:
        """The ids of a piece of text wherever it stands: nothing opens it, and special tokens in it are text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out; an incomplete UTF-8 sequence shows as U+FFFD."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of any ids, special tokens by their names: what a client would have to send to get the ids again."""

    def decode_showing(self, names: Sequence[str]) -> Decode:
        """`decode`, but with the special tokens of these names as text; names without a token are fine."""

    def piece(self, token_id: int) -> Piece:
        """What a token of the vocabulary stands for, wherever in a text it is."""

    def name(self, token_id: int) -> str:
        """A token as the vocabulary writes it."""


def unnamed_piece(token_id: int) -> Piece:
    """Of an id that the vocabulary has no token for: logits may be wider than it. Written as vLLM writes it."""
    return Piece(f"token_id:{token_id}".encode(), is_special=True)


def checked_token_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """A client's token ids. Raises `RequestFaultError` when the vocabulary has no such token."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestFaultError(
                FaultKind.INVALID_REQUEST,
                f"Token id {token_id} is outside the model's vocabulary of {vocab_size} tokens.",
                "prompt",
            )
    return list(token_ids)
