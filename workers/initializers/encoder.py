"""Loading models that make embeddings and cannot generate: Transformers' encoders, and decoders saved without a head.

Whether a folder holds one is read from its config. What is asked for that only generations have is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModel, AutoTokenizer

from model_registry.schema import DeviceMap, RegistryEntry, SingleDevice
from workers.engine.embeddings import Passage
from workers.errors import UnsupportedModelError
from workers.initializers.base import LoadedModel, Progress, embedding_only
from workers.initializers.causal_lm import loaded_from
from workers.runners.embedding import EncoderEmbedder
from workers.runners.pooling import Pooling, VectorShape, own_pooling
from workers.runners.tokenizer import HuggingFaceTokenizer

_HEADLESS: Final = ("Model", "ForMaskedLM")
"""What the names of such classes end with."""
_GENERATES: Final = "LMHeadModel"
_NO_LIMIT: Final = 10**9
"""Tokenizers without a limit of their own give some larger number."""


def only_embeds(config: Any) -> bool:
    """Whether the model has no head to generate with."""
    names = config.architectures or ()
    own_classes = getattr(config, "auto_map", None) or {}
    if getattr(config, "is_encoder_decoder", False) or "AutoModelForCausalLM" in own_classes:
        return False
    return bool(names) and all(name.endswith(_HEADLESS) and not name.endswith(_GENERATES) for name in names)


def load_encoder(
    folder: Path, entry: RegistryEntry, settings: SingleDevice | DeviceMap, progress: Progress, device_map: Any
) -> LoadedModel:
    """The model, on the devices that `device_map` says. Raises `LoadError`."""
    if settings.torch_compile is not None:
        raise UnsupportedModelError(
            f"initializer.torch_compile compiles the steps of generations, and {folder.name} makes embeddings only; "
            "remove it"
        )
    kwargs: Mapping[str, Any] = settings.from_pretrained_kwargs
    dtype = getattr(torch, settings.dtype)
    model = loaded_from(
        folder, lambda: AutoModel.from_pretrained(folder, dtype=dtype, device_map=device_map, **kwargs).eval()
    )
    trusted = kwargs.get("trust_remote_code", False)
    tokenizer = loaded_from(folder, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted))
    shape = VectorShape.of(entry.model.embedding, own_pooling(folder, Pooling.MEAN))
    embedder = EncoderEmbedder(model, shape)
    progress("warming up")
    embedder.embed([Passage((0,), embedder.num_dimensions)])
    vocab_size = model.config.get_text_config().vocab_size
    wrapped = HuggingFaceTokenizer(tokenizer, vocab_size=vocab_size, eos_token_ids=frozenset(), closes_texts=True)
    return embedding_only(embedder, wrapped, entry.model.generation, _max_model_len(model, tokenizer))


def _max_model_len(model: Any, tokenizer: Any) -> int:
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    num_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if num_positions:
        # RoBERTa and its kin count positions from behind the padding's.
        padding = getattr(getattr(model, "embeddings", None), "padding_idx", None)
        limits.append(num_positions if padding is None else num_positions - padding - 1)
    if not limits:
        raise UnsupportedModelError("the model does not state its context length; set generation.max_model_len")
    return int(min(limits))
