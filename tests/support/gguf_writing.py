"""A small Hugging Face Llama written as a GGUF file, weights in float32: one model for every initializer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, LlamaConfig

NORMAL, CONTROL = 1, 3
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "_proj": "",
    "mlp.": "ffn_",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}
"""What is replaced, in this order, in a tensor's name."""


def write_gguf(folder: Path, path: Path, *, eos_token_id: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    writer = GGUFWriter(path, "llama")
    _add_sizes(writer, model.config)
    _add_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text()), eos_token_id)
    for name, tensor in model.state_dict().items():
        for part, replacement in NAMES.items():
            name = name.replace(part, replacement)
        writer.add_tensor(name, _in_rotary_pairs(name, tensor.numpy(), model.config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: GGUFWriter, config: LlamaConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: GGUFWriter, tokenizer: dict[str, Any], eos_token_id: int) -> None:
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary: dict[str, int] = {**tokenizer["model"]["vocab"], **added}
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    writer.add_token_types([CONTROL if token_id in special else NORMAL for token_id in range(len(vocabulary))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(eos_token_id)
    writer.add_add_bos_token(False)


def _in_rotary_pairs(name: str, array: np.ndarray[Any, Any], config: LlamaConfig) -> np.ndarray[Any, Any]:
    """GGUF keeps the two rows that rotate together side by side; Hugging Face keeps all first ones, then all second."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    num_heads = next((count for part, count in heads.items() if part in name), None)
    if num_heads is None:
        return array
    halves = array.reshape(num_heads, 2, array.shape[0] // num_heads // 2, array.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
