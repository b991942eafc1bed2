"""Builds a Hugging Face tokenizer from a GGUF file's metadata, splitting text exactly as llama.cpp does for that file.

Built here and not by Transformers' GGUF loader, because that one falls back to GPT-2's splitting for names it does
not know. Byte-level BPE only; a vocabulary or a split rule without an entry here is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from workers.errors import SourceError
from workers.sources.gguf_file import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_KEY = "tokenizer.ggml"
_SPLITS_DIGITS: Mapping[str, bool] = {"gpt-2": False, "smollm": True}
"""Split rule (`tokenizer.ggml.pre`) → whether digits are cut off one by one before GPT-2's rule applies."""


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type` that matter here."""

    CONTROL = 3
    USER_DEFINED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokenIds:
    """Ids with a role, as the file gives them."""

    bos: int | None
    eos: int
    pad: int
    unknown: int | None
    end_of_turn: int | None

    @property
    def stops(self) -> int | list[int]:
        """What ends a generation, in the form generation_config.json has it."""
        return self.eos if self.end_of_turn in (None, self.eos) else [self.eos, self.end_of_turn]


def read_special_token_ids(file: GgufFile) -> SpecialTokenIds:
    eos = file.require(f"{_KEY}.eos_token_id", int)
    pad = file.get(f"{_KEY}.padding_token_id", int)
    return SpecialTokenIds(
        bos=file.get(f"{_KEY}.bos_token_id", int),
        eos=eos,
        pad=eos if pad is None else pad,
        unknown=file.get(f"{_KEY}.unknown_token_id", int),
        end_of_turn=file.get(f"{_KEY}.eot_token_id", int),
    )


def build_tokenizer(file: GgufFile, context_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and chat template. Raises `SourceError` for kinds it cannot rebuild."""
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = file.require(f"{_KEY}.tokens", list)
    ids = read_special_token_ids(file)
    named: dict[str, Any] = {"eos_token": tokens[ids.eos], "pad_token": tokens[ids.pad]}
    if ids.bos is not None:
        named["bos_token"] = tokens[ids.bos]
    if ids.unknown is not None:
        named["unk_token"] = tokens[ids.unknown]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_backend(file, tokens, ids),
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        **named,
    )
    tokenizer.chat_template = file.get("tokenizer.chat_template", str)
    if len(tokenizer) != len(tokens):
        raise SourceError(f"{file.name}: the rebuilt vocabulary has {len(tokenizer)} tokens, expected {len(tokens)}")
    return tokenizer


def build_backend(file: GgufFile, tokens: list[str], ids: SpecialTokenIds) -> Tokenizer:
    """Text to ids and back, as the file says, without the roles that Transformers gives to special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    model = file.require(f"{_KEY}.model", str)
    if model != "gpt2":
        raise SourceError(f"{file.name}: tokenizer model {model!r} is not supported, only 'gpt2' (byte-level BPE) is")
    merges = [tuple(merge.split(" ", 1)) for merge in file.require(f"{_KEY}.merges", list)]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = _build_pre_tokenizer(file)
    backend.decoder = decoders.ByteLevel()
    types: list[int] = file.require(f"{_KEY}.token_type", list)
    typed = list(zip(tokens, types, strict=True))
    backend.add_special_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == TokenType.CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == TokenType.USER_DEFINED])
    backend.post_processor = _build_post_processor(file, tokens, ids)
    return backend


def _build_pre_tokenizer(file: GgufFile) -> Any:
    from tokenizers import pre_tokenizers

    rule = file.require(f"{_KEY}.pre", str)
    if rule not in _SPLITS_DIGITS:
        raise SourceError(
            f"{file.name}: split rule {rule!r} is not supported, only {', '.join(sorted(_SPLITS_DIGITS))} are"
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if not _SPLITS_DIGITS[rule]:
        return byte_level
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def _build_post_processor(file: GgufFile, tokens: list[str], ids: SpecialTokenIds) -> Any:
    """Adds the tokens that the file wants around every prompt."""
    from tokenizers import processors

    if file.get(f"{_KEY}.add_eos_token", bool):
        raise SourceError(f"{file.name}: add_eos_token is not supported: a prompt that ends cannot be continued")
    adds_bos = bool(file.get(f"{_KEY}.add_bos_token", bool))
    if adds_bos and ids.bos is None:
        raise SourceError(f"{file.name}: add_bos_token is set and bos_token_id is missing")
    if not adds_bos or ids.bos is None:
        return processors.ByteLevel(trim_offsets=False)
    return processors.TemplateProcessing(
        single=f"{tokens[ids.bos]}:0 $A:0", pair=None, special_tokens=[(tokens[ids.bos], ids.bos)]
    )
