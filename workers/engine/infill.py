"""Filling in the middle: what code models are trained to put between a text's beginning and its end.

The prompt is the beginning and the end behind tokens that say which is which; the model goes on with the middle. Knows
which tokens those are, by name; called by the tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from model_registry.contract import FaultKind, InfillPrompt, RequestFaultError

NAMES: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001  DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
"""Of the tokens before the beginning, before the end and before the middle."""


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """Ids of the tokens that stand before each part."""

    beginning: int
    end: int
    middle: int


def find_infill_tokens(id_of: Callable[[str], int | None]) -> InfillTokens | None:
    """Those of a vocabulary, None when it has none."""
    for names in NAMES:
        beginning, end, middle = map(id_of, names)
        if beginning is not None and end is not None and middle is not None:
            return InfillTokens(beginning, end, middle)
    return None


def encode_infill(
    prompt: InfillPrompt, tokens: InfillTokens | None, encode_text: Callable[[str], list[int]]
) -> list[int]:
    """Raises `RequestFaultError` for a model without such tokens."""
    if tokens is None:
        raise RequestFaultError(
            FaultKind.INVALID_REQUEST,
            "Invalid 'suffix': this model was not trained to fill in a text; its vocabulary has no tokens for that.",
            "suffix",
        )
    beginning, end = encode_text(prompt.beginning), encode_text(prompt.end)
    return [tokens.beginning, *beginning, tokens.end, *end, tokens.middle]
