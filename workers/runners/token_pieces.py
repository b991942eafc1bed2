"""What each token of a Hugging Face vocabulary adds to a text, as bytes.

Its tokenizer decodes to text only, in which bytes that are part of a character are lost; so tokens that stand for bytes
are read as its decoder reads them. Used by `HuggingFaceTokenizer`; a piece is worked out when it is first asked for.
"""

from __future__ import annotations

import json
import re
from typing import Final

from tokenizers import Tokenizer as RustTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from workers.engine.tokenizer import Piece, unnamed_piece

_BYTES: Final = {char: byte for byte, char in bytes_to_unicode().items()}
"""GPT-2's alphabet, in which byte-level vocabularies write each byte as one character."""
_FALLBACK_BYTE: Final = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte for which a vocabulary of characters has no better token."""


class TokenPieces:
    """The pieces of one vocabulary by token id."""

    def __init__(self, tokenizer: RustTokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self._pieces = {i: Piece(token.content.encode(), is_special=True) for i, token in added if token.special}
        decoders = _decoder_types(tokenizer)
        self._is_byte_level = "ByteLevel" in decoders
        self._has_fallback_bytes = "ByteFallback" in decoders
        # Some decoders drop the space that a text begins with, so tokens are decoded behind others.
        self._before = tokenizer.encode("a", add_special_tokens=False).ids

    def of(self, token_id: int) -> Piece:
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._work_out(token_id)
        return piece

    def _work_out(self, token_id: int) -> Piece:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return unnamed_piece(token_id)
        if self._is_byte_level:
            return Piece(_byte_level(token))
        if self._has_fallback_bytes and (byte := _FALLBACK_BYTE.fullmatch(token)):
            return Piece(bytes.fromhex(byte[1]))
        text = self._tokenizer.decode([*self._before, token_id])
        return Piece(text.removeprefix(self._tokenizer.decode(self._before)).encode())


def _byte_level(token: str) -> bytes:
    """Its bytes; a token that was added to the vocabulary may be written plainly."""
    if any(char not in _BYTES for char in token):
        return token.encode()
    return bytes(_BYTES[char] for char in token)


def _decoder_types(tokenizer: RustTokenizer) -> set[str]:
    """Names of the decoders that make text of tokens, as `tokenizer.json` has them."""
    if tokenizer.decoder is None:
        return set()
    decoder = json.loads(tokenizer.decoder.__getstate__())
    return {part["type"] for part in decoder.get("decoders", [decoder])}
