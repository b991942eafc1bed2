"""What a grammar takes, judged by llguidance itself over a vocabulary of bytes."""

from __future__ import annotations

from functools import cache

import llguidance

END = 256


class ByteVocabulary:
    """One token per byte, and the end."""

    eos_token_id = END
    bos_token_id = None
    tokens = [*(bytes([byte]) for byte in range(END)), b"<end>"]
    special_token_ids = [END]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@cache
def tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(ByteVocabulary()), n_vocab=END + 1)


def takes(grammar: str, text: str) -> bool:
    """Whether the text is what the grammar wants, from beginning to end. Raises `ValueError` for a bad grammar."""
    matcher = llguidance.LLMatcher(tokenizer(), llguidance.LLMatcher.grammar_from_lark(grammar))
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    data = text.encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()
