"""A small BERT with random weights, as a Hugging Face folder and as a GGUF file of the same weights in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PIECES = (
    *SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    "the", "quick", "fox", "work", "##er", "##ing",
)  # fmt: skip
FILE = "tiny-bert.gguf"
NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.": "blk.",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
"""What is replaced, in this order, in a tensor's name."""
NORMAL, CONTROL = 1, 3


def write_tiny_bert(folder: Path) -> Path:
    """Both forms, in a new folder."""
    _save_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    _write_gguf(folder, config)
    return folder


def declare_pooling(folder: Path, **modes: bool) -> None:
    """As Sentence Transformers writes it."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))


def _save_tokenizer(folder: Path) -> None:
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, PIECES.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip


def _write_gguf(folder: Path, config: BertConfig) -> None:
    writer = GGUFWriter(folder / FILE, "bert")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_token_type_count(config.type_vocab_size)
    _add_vocabulary(writer)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    for name, tensor in model.state_dict().items():
        for part, replacement in NAMES.items():
            name = name.replace(part, replacement)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: GGUFWriter) -> None:
    """llama.cpp marks the beginnings of words, where BERT marks what goes on."""
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_marked(piece) for piece in PIECES])
    writer.add_token_types([CONTROL if piece in SPECIAL else NORMAL for piece in PIECES])
    writer.add_bos_token_id(PIECES.index("[CLS]"))
    writer.add_unk_token_id(PIECES.index("[UNK]"))
    writer.add_sep_token_id(PIECES.index("[SEP]"))
    writer.add_pad_token_id(PIECES.index("[PAD]"))
    writer.add_mask_token_id(PIECES.index("[MASK]"))


def _marked(piece: str) -> str:
    if piece in SPECIAL:
        return piece
    return piece.removeprefix("##") if piece.startswith("##") else f"\u2581{piece}"
