"""What a token stands for, for each kind of Hugging Face tokenizer: its pieces put together are the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from workers.engine.tokenizer import Piece
from workers.runners.token_pieces import TokenPieces

TEXT = "the cat, thé 🙂 the"


def byte_level(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def sentence_piece_with_fallback_bytes(_: Path) -> Tokenizer:
    """As Llama 2 and Mistral have it: characters, and bytes for those that it has not; a leading space is dropped."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁,aceht", "th", "▁the"]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("t", "h"), ("▁", "the"), ("th", "e")]
    model = models.BPE(
        vocab={**vocabulary, "the": len(vocabulary)}, merges=[merges[0], merges[2], merges[1]], unk_token="<unk>",
        byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def unigram(_: Path) -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁the", -1.0), ("▁", -3.0), *((char, -4.0) for char in ",acehté🙂")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS = [byte_level, sentence_piece_with_fallback_bytes, unigram]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_text_put_together_are_the_text(kind: Callable[[Path], Tokenizer], tiny_llama: Path) -> None:
    tokenizer = kind(tiny_llama)
    pieces = TokenPieces(tokenizer)
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert len(token_ids) < len(TEXT.encode())
    text = b"".join(pieces.of(token_id).text for token_id in token_ids).decode()
    # What opens a text with a space of its own says so; in the middle of a text that space is there.
    assert text.removeprefix(" ") == tokenizer.decode(token_ids) == TEXT


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_part_of_a_character_is_its_bytes(kind: Callable[[Path], Tokenizer], tiny_llama: Path) -> None:
    tokenizer = kind(tiny_llama)
    token_ids = tokenizer.encode("🙂", add_special_tokens=False).ids[-4:]
    pieces = TokenPieces(tokenizer)
    assert [pieces.of(token_id).text for token_id in token_ids] == [b"\xf0", b"\x9f", b"\x99", b"\x82"]


def test_special_tokens_have_their_names_and_added_ones_their_text(tiny_llama: Path) -> None:
    tokenizer = byte_level(tiny_llama)
    tokenizer.add_tokens([AddedToken("two words", special=False)])
    pieces = TokenPieces(tokenizer)
    assert pieces.of(2) == Piece(b"<|im_end|>", is_special=True)
    assert pieces.of(320) == Piece(b"two words")
    assert tokenizer.decode([320]) == "two words"


def test_ids_that_the_vocabulary_has_no_token_for_are_called_by_their_number(tiny_llama: Path) -> None:
    assert TokenPieces(byte_level(tiny_llama)).of(5000) == Piece(b"token_id:5000", is_special=True)


def test_every_token_of_a_real_vocabulary_is_what_it_decodes_to(smollm2: Path) -> None:
    """As far as it decodes to whole characters; what does not shows as U+FFFD."""
    tokenizer = byte_level(smollm2)
    pieces = TokenPieces(tokenizer)
    for token_id in range(tokenizer.get_vocab_size()):
        piece = pieces.of(token_id)
        decoded = tokenizer.decode([token_id])
        assert decoded == ("" if piece.is_special else piece.text.decode(errors="replace"))
