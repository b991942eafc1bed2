"""A GGUF file's own tokenizer behind the engine's `Tokenizer` seam, so text is split exactly as llama.cpp splits it.

Works for every vocabulary that llama.cpp knows, where a rebuilt one would know some. Special tokens in text that a
client wrote are text: only the model's template and a client's raw prompt may hold control tokens. Reads only, so
several threads may call it at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from model_registry.contract import InfillPrompt, Prompt, TextPrompt, TokenPrompt
from workers.engine.infill import InfillTokens, encode_infill
from workers.engine.tokenizer import Decode, Piece, checked_token_ids, unnamed_piece
from workers.runners.chat_template import ChatTemplate, Escape, SpecialTokens
from workers.runners.llama_library import llama_cpp
from workers.runners.llama_model import LlamaModel

_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
"""Attributes of the tokens that llama.cpp finds in a text only when told to look for special ones."""
_PIECE_BYTES = 256


class LlamaCppTokenizer:
    """Encodes prompts and decodes tokens for one model."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self.vocab_size = model.vocab_size
        ids = range(self.vocab_size)
        self.eos_token_ids = frozenset(i for i in ids if llama_cpp.llama_vocab_is_eog(model.vocab, i))
        self._pieces = [_piece_of(model, i) for i in ids]
        control = (i for i in ids if llama_cpp.llama_vocab_get_attr(model.vocab, i) & _CONTROL)
        self._special = SpecialTokens({_text_of(model, i): i for i in control})
        self._template = ChatTemplate(model.chat_template, _template_variables(model))
        self._infill_tokens = _find_infill_tokens(model)
        self.answer_format = self._template.answer_format
        adds_bos = llama_cpp.llama_vocab_get_add_bos(model.vocab)
        self._opening_ids = [llama_cpp.llama_vocab_bos(model.vocab)] if adds_bos else []
        self._closing_ids = _closing_ids(model)
        self._closes_texts = model.is_encoder

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
        return self._with_opening(self._encode(self._template.render(prompt, escape), escape))

    def encode_text(self, text: str) -> list[int]:
        return self._tokenize(text, parse_special=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join([self._pieces[token_id] for token_id in token_ids]).decode(errors="replace")

    def detokenize(self, token_ids: Sequence[int]) -> str:
        ids = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        room = sum(len(self.piece(token_id).text) for token_id in token_ids) + 1
        buffer = ctypes.create_string_buffer(room)
        size = llama_cpp.llama_detokenize(self._model.vocab, ids, len(ids), buffer, room, False, True)
        if size < 0:
            raise RuntimeError(f"llama.cpp made {-size} bytes of tokens that have {room}")
        return buffer.raw[:size].decode(errors="replace")

    def decode_showing(self, names: Sequence[str]) -> Decode:
        ids = (self._special.id_of(name) for name in names)
        shown = {token_id: _text_of(self._model, token_id).encode() for token_id in ids if token_id is not None}

        def decode(token_ids: Sequence[int]) -> str:
            return b"".join([shown.get(i) or self._pieces[i] for i in token_ids]).decode(errors="replace")

        return decode

    def piece(self, token_id: int) -> Piece:
        if self._pieces[token_id]:
            return Piece(self._pieces[token_id])
        name = _text_of(self._model, token_id)
        return Piece(name.encode(), is_special=True) if name else unnamed_piece(token_id)

    def name(self, token_id: int) -> str:
        return _text_of(self._model, token_id)

    def _encode(self, text: str, escape: Escape) -> list[int]:
        if not escape.hidden:
            return self._tokenize(text, parse_special=True)
        token_ids: list[int] = []
        for piece in self._special.split(text):
            special_id = self._special.id_of(piece)
            if special_id is not None:
                token_ids.append(special_id)
            else:
                token_ids.extend(self.encode_text(escape.reveal(piece)))
        return token_ids

    def _tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        data = text.encode(errors="replace")
        room = len(data) + 2  # a token takes a byte at least, but for a space that some vocabularies put in front
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self._model.vocab,
            data,
            len(data),
            buffer,
            room,
            False,
            parse_special,
        )
        if count < 0:
            raise RuntimeError(f"llama.cpp made {-count} tokens of {len(data)} bytes")
        token_ids: list[int] = buffer[:count]
        return token_ids

    def _with_opening(self, token_ids: list[int]) -> list[int]:
        """A prompt begins as the model was trained, unless its author or the template already wrote that."""
        opening = self._opening_ids
        return token_ids if token_ids[: len(opening)] == opening else opening + token_ids


def _closing_ids(model: LlamaModel) -> list[int]:
    """What the file says comes after a whole text."""
    if llama_cpp.llama_vocab_get_add_sep(model.vocab):
        return [llama_cpp.llama_vocab_sep(model.vocab)]
    return [llama_cpp.llama_vocab_eos(model.vocab)] if llama_cpp.llama_vocab_get_add_eos(model.vocab) else []


def _template_variables(model: LlamaModel) -> dict[str, str]:
    ids = {
        "bos_token": llama_cpp.llama_vocab_bos(model.vocab),
        "eos_token": llama_cpp.llama_vocab_eos(model.vocab),
        "pad_token": llama_cpp.llama_vocab_pad(model.vocab),
    }
    return {name: _text_of(model, token_id) for name, token_id in ids.items() if token_id >= 0}


def _find_infill_tokens(model: LlamaModel) -> InfillTokens | None:
    """As llama.cpp knows them: by the file's metadata, or by their names."""
    beginning = llama_cpp.llama_vocab_fim_pre(model.vocab)
    end = llama_cpp.llama_vocab_fim_suf(model.vocab)
    middle = llama_cpp.llama_vocab_fim_mid(model.vocab)
    return None if min(beginning, end, middle) < 0 else InfillTokens(beginning, end, middle)


def _text_of(model: LlamaModel, token_id: int) -> str:
    """A token as the vocabulary writes it."""
    text: bytes = llama_cpp.llama_vocab_get_text(model.vocab, token_id)
    return text.decode(errors="replace")


def _piece_of(model: LlamaModel, token_id: int) -> bytes:
    """The bytes that a token adds to a text; none for a special one."""
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    size = llama_cpp.llama_token_to_piece(model.vocab, token_id, buffer, len(buffer), 0, False)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = llama_cpp.llama_token_to_piece(model.vocab, token_id, buffer, len(buffer), 0, False)
    return buffer.raw[:size]
