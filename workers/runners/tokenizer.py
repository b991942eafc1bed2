"""A Hugging Face tokenizer behind the engine's `Tokenizer` seam.

Uses the Rust tokenizer underneath directly: it is safe on several threads, unlike its Python wrapper. Special tokens in
text that a client wrote are text: only the model's template and a client's raw prompt may hold control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from model_registry.contract import InfillPrompt, Prompt, TextPrompt, TokenPrompt
from workers.engine.infill import encode_infill, find_infill_tokens
from workers.engine.tokenizer import Decode, Piece, checked_token_ids, unnamed_piece
from workers.errors import UnsupportedModelError
from workers.runners.chat_template import ChatTemplate, Escape, SpecialTokens
from workers.runners.token_pieces import TokenPieces


class HuggingFaceTokenizer:
    """Encodes prompts and decodes tokens for one model."""

    def __init__(
        self, tokenizer: Any, *, vocab_size: int, eos_token_ids: frozenset[int], closes_texts: bool = False
    ) -> None:
        """`tokenizer` is a fast Transformers tokenizer, `vocab_size` the width of the model's logits.

        `closes_texts`: every text is a whole one, since the model does not go on with texts.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModelError(f"{type(tokenizer).__name__} has no fast tokenizer (tokenizer.json)")
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self._closes_texts = closes_texts
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self._template = ChatTemplate(template, tokenizer.special_tokens_map)
        self._rust: RustTokenizer = RustTokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain: RustTokenizer = RustTokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        for rust in (self._rust, self._plain):
            rust.no_padding()
            rust.no_truncation()
        added = self._rust.get_added_tokens_decoder().items()
        self._special = SpecialTokens({token.content: token_id for token_id, token in added if token.special})
        self._infill_tokens = find_infill_tokens(self._rust.token_to_id)
        self._opening_ids, self._closing_ids = self._find_frame()
        self.answer_format = self._template.answer_format
        self._pieces = TokenPieces(self._rust)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, TokenPrompt):
            return checked_token_ids(prompt.token_ids, self.vocab_size)
        if isinstance(prompt, InfillPrompt):
            return self._with_opening(encode_infill(prompt, self._infill_tokens, self.encode_text))
        escape = Escape(self._special)
        if isinstance(prompt, TextPrompt):
            token_ids = self._encode(escape.join(prompt), escape)
            framed = self._with_opening(token_ids) if prompt.has_opening else token_ids
            return framed + self._closing_ids if prompt.has_closing or self._closes_texts else framed
        return self._encode(self._template.render(prompt, escape), escape)

    def encode_text(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._rust.decode(token_ids, skip_special_tokens=True)
        return text

    def detokenize(self, token_ids: Sequence[int]) -> str:
        text: str = self._rust.decode(token_ids, skip_special_tokens=False)
        return text

    def decode_showing(self, names: Sequence[str]) -> Decode:
        hidden = self._special.ids_without(names)

        def decode(token_ids: Sequence[int]) -> str:
            shown = [token_id for token_id in token_ids if token_id not in hidden]
            text: str = self._rust.decode(shown, skip_special_tokens=False)
            return text

        return decode

    def piece(self, token_id: int) -> Piece:
        return self._pieces.of(token_id)

    def name(self, token_id: int) -> str:
        name: str | None = self._rust.id_to_token(token_id)
        return unnamed_piece(token_id).text.decode() if name is None else name

    def _encode(self, text: str, escape: Escape) -> list[int]:
        if not escape.hidden:
            return list(self._rust.encode(text, add_special_tokens=False).ids)
        token_ids: list[int] = []
        for piece in self._special.split(text):
            special_id = self._special.id_of(piece)
            if special_id is not None:
                token_ids.append(special_id)
            else:
                token_ids.extend(self.encode_text(escape.reveal(piece)))
        return token_ids

    def _with_opening(self, token_ids: list[int]) -> list[int]:
        """Raw text begins as the model was trained, unless its author already wrote that."""
        opening = self._opening_ids
        return token_ids if token_ids[: len(opening)] == opening else opening + token_ids

    def _find_frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts before any text, such as a BOS token, and after it, such as a separator."""
        with_special = list(self._rust.encode("a").ids)
        without = self._rust.encode("a", add_special_tokens=False).ids
        if not without:
            return [], []
        start = with_special.index(without[0])
        return with_special[:start], with_special[start + len(without) :]
