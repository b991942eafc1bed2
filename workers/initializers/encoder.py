"""Loading models that make embeddings and cannot generate: Transformers' encoders, and decoders saved without a head.

Whether a folder holds one is asked of Transformers' own lists of classes. What is asked for that only generations have
is refused by name, and so is a model that makes nothing of token ids alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from model_registry.schema import DeviceMap, RegistryEntry, SingleDevice
from workers.errors import DeviceLostError, UnsupportedModelError, first_line
from workers.initializers.base import LoadedModel, Progress, embedding_only
from workers.initializers.causal_lm import loaded_from
from workers.runners.embedding import EncoderEmbedder
from workers.runners.pooling import Pooling, VectorShape, own_pooling
from workers.runners.tokenizer import HuggingFaceTokenizer

_ClassNames = Mapping[str, str | tuple[str, ...]]
"""By model type in Transformers' lists, by `AutoModel...` in the config of a folder with classes of its own."""

_HEADLESS: Final[tuple[_ClassNames, ...]] = (MODEL_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES)
_GENERATES: Final[tuple[_ClassNames, ...]] = (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
_NO_LIMIT: Final = 10**9
"""Tokenizers without a limit of their own give some larger number."""


def only_embeds(config: Any) -> bool:
    """Whether the model has no head to generate with."""
    if not config.architectures or getattr(config, "is_encoder_decoder", False):
        return False
    own: _ClassNames = getattr(config, "auto_map", None) or {}
    headless = {*_classes(own, "AutoModel", "AutoModelForMaskedLM"), *_listed(_HEADLESS, config.model_type)}
    generates = {*_classes(own, "AutoModelForCausalLM"), *_listed(_GENERATES, config.model_type)}
    return headless - generates >= set(config.architectures)


def _listed(lists: tuple[_ClassNames, ...], model_type: str) -> Iterator[str]:
    for names in lists:
        yield from _classes(names, model_type)


def _classes(names: _ClassNames, *keys: str) -> Iterator[str]:
    """Bare names: those of a folder's own classes have their module's before them."""
    for found in (names.get(key, ()) for key in keys):
        for name in (found,) if isinstance(found, str) else found:
            yield name.rpartition(".")[2]


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
    progress("warming up")
    embedder = _embedder(model, shape)
    vocab_size = model.config.get_text_config().vocab_size
    wrapped = HuggingFaceTokenizer(tokenizer, vocab_size=vocab_size, eos_token_ids=frozenset(), closes_texts=True)
    return embedding_only(embedder, wrapped, entry.model.generation, _max_model_len(model, tokenizer))


def _embedder(model: Any, shape: VectorShape) -> EncoderEmbedder:
    """Raises `LoadError`."""
    try:
        return EncoderEmbedder(model, shape)
    except DeviceLostError:
        raise
    except Exception as error:
        # An edge: a model that wants images, or whose output has no hidden states, fails in a way of its own.
        raise UnsupportedModelError(
            f"{type(model).__name__} makes no embeddings of text ({type(error).__name__}: {first_line(error)}); "
            "use a model that generates text, or one that embeds it"
        ) from error


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
