"""The seam between text and token ids, as the engine sees it. Knows no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model_registry.contract import Prompt


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

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out; an incomplete UTF-8 sequence shows as U+FFFD."""
