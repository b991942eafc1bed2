"""A GGUF file loaded by llama.cpp: the owner of its memory, and what it says about itself.

Everything that reads metadata or the vocabulary asks here. The memory is given back when the last user (runner,
tokenizer) is gone.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

from workers.errors import UnsupportedModelError
from workers.runners.llama_library import llama_cpp

_KEY_BYTES = 128


class LlamaModel:
    """A loaded model and its vocabulary."""

    def __init__(self, pointer: int) -> None:
        """Takes over `pointer`, a `llama_model *`. Raises `UnsupportedModelError` for kinds the engine cannot run."""
        self.pointer: Any = pointer
        weakref.finalize(self, llama_cpp.llama_model_free, pointer).atexit = False
        self.vocab: Any = llama_cpp.llama_model_get_vocab(pointer)
        _check_kind(pointer)

    @property
    def vocab_size(self) -> int:
        """Tokens, and the width of the logits."""
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @property
    def context_length(self) -> int:
        """Tokens of one sequence that it was trained for."""
        return int(llama_cpp.llama_model_n_ctx_train(self.pointer))

    @property
    def embedding_size(self) -> int:
        """Numbers of a token's hidden state."""
        return int(llama_cpp.llama_model_n_embd_out(self.pointer))

    @property
    def is_encoder(self) -> bool:
        """Whether each token sees those after it too, so that nothing can be gone on with."""
        return self.metadata("{arch}.attention.causal") == "false"

    @property
    def own_pooling(self) -> int | None:
        """The file's own number of how hidden states become one vector, as `llama_pooling_type` has it."""
        number = self.metadata("{arch}.pooling_type")
        return int(number) if number else None

    @property
    def window(self) -> int | None:
        """Tokens that the layers with sliding-window attention see; None when all layers see everything."""
        return int(llama_cpp.llama_model_n_swa(self.pointer)) or None

    @property
    def chat_template(self) -> str | None:
        template = llama_cpp.llama_model_chat_template(self.pointer, None)
        return template.decode() if template else None

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text; `{arch}` in the key is the architecture's name."""
        buffer = ctypes.create_string_buffer(_KEY_BYTES)
        if "{arch}" in key:
            key = key.format(arch=self.metadata("general.architecture"))
        size = llama_cpp.llama_model_meta_val_str(self.pointer, key.encode(), buffer, _KEY_BYTES)
        return buffer.value.decode(errors="replace") if size >= 0 else None

    def kv_values_per_token(self) -> int:
        """Numbers of keys and of values that one token takes in the KV cache, each."""
        num_layers = llama_cpp.llama_model_n_layer(self.pointer)
        num_heads = llama_cpp.llama_model_n_head(self.pointer)
        head_dim = self.metadata("{arch}.attention.key_length")
        width = int(head_dim) if head_dim else llama_cpp.llama_model_n_embd(self.pointer) // max(num_heads, 1)
        return int(num_layers * llama_cpp.llama_model_n_head_kv(self.pointer) * width)


def _check_kind(pointer: Any) -> None:
    """Refuse what needs more than tokens in and a KV cache that can be cut."""
    kinds = (
        (llama_cpp.llama_model_has_encoder, "has an encoder"),
        (llama_cpp.llama_model_is_diffusion, "is a diffusion model"),
        (llama_cpp.llama_model_is_recurrent, "keeps a recurrent state, which cannot be taken back to an earlier token"),
        (llama_cpp.llama_model_is_hybrid, "keeps a recurrent state, which cannot be taken back to an earlier token"),
    )
    for is_kind, text in kinds:
        if is_kind(pointer):
            raise UnsupportedModelError(f"the model {text}; the LlamaCpp initializer runs plain decoders only")
    if not llama_cpp.llama_model_has_decoder(pointer):
        raise UnsupportedModelError("the model has no decoder, so it cannot generate text")
