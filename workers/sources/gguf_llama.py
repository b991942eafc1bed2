"""The llama architecture in GGUF's terms and in Hugging Face's: configuration, tensor names, row order.

Refuses every key and tensor it does not understand, because one overlooked (a rope scaling, a bias) gives a model
that runs and answers wrongly. Called by the conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.errors import SourceError
from workers.sources.gguf_file import GgufFile
from workers.sources.safetensors_writer import FloatArray

ARCHITECTURE = "llama"
_KEYS = frozenset(
    f"{ARCHITECTURE}.{key}"
    for key in (
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "vocab_size",
    )
)
_DEFAULT_ROPE_THETA = 10000.0
"""llama.cpp's, for files that do not say."""
_OUTER_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_OUTPUT_NAME = ("output.weight", "lm_head.weight")
_BLOCK_NAMES: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class LlamaLayout:
    """How one llama GGUF maps to `LlamaForCausalLM`. Raises `SourceError` when it does not map exactly."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        unknown = sorted(key for key in file.keys - _KEYS if key.startswith(f"{ARCHITECTURE}."))
        if unknown:
            raise SourceError(f"{file.name} sets {', '.join(unknown)}, which the conversion does not understand")
        self._num_heads = self._integer("attention.head_count")
        self._num_kv_heads = self._optional_integer("attention.head_count_kv") or self._num_heads
        self._num_layers = self._integer("block_count")
        self.gguf_names = self._map_names()
        """Hugging Face name → GGUF name of every tensor."""
        self.shapes = {name: file.shapes[gguf_name] for name, gguf_name in self.gguf_names.items()}
        """Hugging Face name → shape."""

    def config(self) -> dict[str, Any]:
        """Arguments of `transformers.LlamaConfig`, but for the tokenizer's ids."""
        hidden_size = self._integer("embedding_length")
        head_dim = self._optional_integer("attention.key_length") or hidden_size // self._num_heads
        for key in ("attention.value_length", "rope.dimension_count"):
            if (self._optional_integer(key) or head_dim) != head_dim:
                raise SourceError(f"{self._file.name}: {ARCHITECTURE}.{key} differs from the head size {head_dim}")
        rope_theta = self._file.get(f"{ARCHITECTURE}.rope.freq_base", float) or _DEFAULT_ROPE_THETA
        return {
            "architectures": ["LlamaForCausalLM"],
            "dtype": "float32",
            "head_dim": head_dim,
            "hidden_size": hidden_size,
            "intermediate_size": self._integer("feed_forward_length"),
            "max_position_embeddings": self._integer("context_length"),
            "num_attention_heads": self._num_heads,
            "num_hidden_layers": self._num_layers,
            "num_key_value_heads": self._num_kv_heads,
            "rms_norm_eps": self._file.require(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon", float),
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
            "tie_word_embeddings": _OUTPUT_NAME[1] not in self.gguf_names,
            "vocab_size": self.shapes["model.embed_tokens.weight"][0],
        }

    def load(self, name: str) -> FloatArray:
        """The tensor of that Hugging Face name, de-quantised, rows in Hugging Face's order."""
        array = self._file.dequantize(self.gguf_names[name])
        if name.endswith("q_proj.weight"):
            return _split_rotary_halves(array, self._num_heads)
        if name.endswith("k_proj.weight"):
            return _split_rotary_halves(array, self._num_kv_heads)
        return array

    def _map_names(self) -> dict[str, str]:
        names = {hf_name: gguf_name for gguf_name, hf_name in _OUTER_NAMES.items()}
        for layer in range(self._num_layers):
            for gguf_part, hf_part in _BLOCK_NAMES.items():
                names[f"model.layers.{layer}.{hf_part}.weight"] = f"blk.{layer}.{gguf_part}.weight"
        present = self._file.shapes.keys()
        if _OUTPUT_NAME[0] in present:
            names[_OUTPUT_NAME[1]] = _OUTPUT_NAME[0]
        for problem, tensors in (
            ("lacks the tensor", set(names.values()) - present),
            ("holds a tensor that the conversion does not understand:", present - set(names.values())),
        ):
            if tensors:
                raise SourceError(f"{self._file.name} {problem} {min(tensors)} ({len(tensors)} in all)")
        return names

    def _integer(self, key: str) -> int:
        return self._file.require(f"{ARCHITECTURE}.{key}", int)

    def _optional_integer(self, key: str) -> int | None:
        return self._file.get(f"{ARCHITECTURE}.{key}", int)


def _split_rotary_halves(array: FloatArray, num_heads: int) -> FloatArray:
    """GGUF keeps the two rows that rotate together side by side; Hugging Face keeps all first ones, then all second."""
    pairs = array.reshape(num_heads, array.shape[0] // num_heads // 2, 2, array.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)
