"""How many tokens a request is thought to have. The gateway has no tokenizer: it estimates, and only compares.

Pure. Used where requests are weighed: by routing, and for the load that is reported to the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from model_registry.contract import ChatMessage, ChatPrompt, InfillPrompt, Prompt, TextPrompt, TokenPrompt

BYTES_PER_TOKEN: Final = 4
"""Of UTF-8, in English, about."""
EXPECTED_TOKENS: Final = 256
"""Tokens that a sequence without a nearer limit is thought to have left, however many it has: most answers are short,
and a limit of thousands is a precaution."""


def prompt_tokens(prompt: Prompt) -> int:
    """About how many tokens a prompt has; at least one."""
    match prompt:
        case TokenPrompt(token_ids):
            return max(1, len(token_ids))
        case InfillPrompt(beginning, end):
            return _of_texts((beginning, end))
        case TextPrompt(segments):
            return _of_texts(segment.text for segment in segments)
        case ChatPrompt(messages, tools):
            return _of_texts((*(str(tool) for tool in tools), *(text for one in messages for text in _texts_of(one))))


def tokens_left(max_tokens: int | None, num_generated: int) -> int:
    """About how many tokens a sequence has left to generate."""
    return EXPECTED_TOKENS if max_tokens is None else min(max(max_tokens - num_generated, 0), EXPECTED_TOKENS)


def _texts_of(message: ChatMessage) -> Iterable[str]:
    yield from (message.role, message.reasoning, message.content)
    for call in message.tool_calls:
        yield from (call.name, call.arguments)


def _of_texts(texts: Iterable[str]) -> int:
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return max(1, -(-num_bytes // BYTES_PER_TOKEN))
