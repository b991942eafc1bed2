"""SingleDevice: the whole model on one GPU, or on the CPU when the replica has no GPU.

Loads with Transformers, sizes the KV cache, and proves before serving that the model runs on paged attention. What it
cannot run it refuses by name.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from model_registry.schema import Generation, RegistryEntry, SingleDevice
from workers.engine.paged_kv_cache import PagedKVCache
from workers.errors import LoadError, UnsupportedModelError
from workers.initializers.base import LoadedModel, Progress
from workers.runners.packed_linear import pack_linears
from workers.runners.sampling import TorchSampler
from workers.runners.tokenizer import HuggingFaceTokenizer
from workers.runners.transformers import (
    BLOCK_SIZE,
    KVShape,
    TransformersRunner,
    check_against_own_attention,
    reference_logits,
)
from workers.sources import default_cache_dir, fetch_model

logger = logging.getLogger(__name__)

HOST_KV_SHARE = 0.25
"""Share of the host's available memory that a KV cache may take when the registry does not say."""
GPU_KV_SHARE = 0.9
"""Share of the GPU memory left after loading, likewise."""
RESERVED_KWARGS = ("dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config")
"""Arguments of `from_pretrained` that other keys of the registry decide."""


class SingleDeviceInitializer:
    """Loads one model onto one device."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel:
        settings = entry.model.initialization.initializer
        if not isinstance(settings, SingleDevice):
            raise TypeError(f"SingleDeviceInitializer cannot load {settings.type}")
        _check_kwargs(settings.from_pretrained_kwargs)
        if settings.use_bettertransformer:
            logger.info("use_bettertransformer: it left Transformers; attention is PyTorch's own here in any case")
        torch.set_num_threads(max(1, math.ceil(entry.scaling.num_cpus_per_worker)))
        device = _device(entry)
        folder = fetch_model(entry.model, default_cache_dir(), progress)
        progress("loading weights")
        model = _load_model(folder, settings, device)
        return _wrap(model, _load_tokenizer(folder, model, settings), entry.model.generation, progress)


def _wrap(model: Any, tokenizer: HuggingFaceTokenizer, generation: Generation, progress: Progress) -> LoadedModel:
    expected = reference_logits(model)
    pack_linears(model)
    max_model_len, num_kv_blocks = _size_kv_cache(model, generation)
    runner = TransformersRunner(model, num_kv_blocks=num_kv_blocks, max_model_len=max_model_len)
    progress("warming up")
    check_against_own_attention(model, runner, expected)
    return LoadedModel(
        runner=runner,
        sampler=TorchSampler(),
        tokenizer=tokenizer,
        max_model_len=max_model_len,
        new_kv_cache=partial(PagedKVCache, num_kv_blocks, BLOCK_SIZE),
    )


def _check_kwargs(kwargs: dict[str, Any]) -> None:
    for name in RESERVED_KWARGS:
        if name in kwargs:
            raise UnsupportedModelError(
                f"initializer.from_pretrained_kwargs.{name} cannot be set here; other keys of the registry decide it"
            )


def _device(entry: RegistryEntry) -> torch.device:
    if not entry.scaling.num_gpus_per_worker:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LoadError(
            f"scaling_config.num_gpus_per_worker is {entry.scaling.num_gpus_per_worker:g}, "
            "but torch sees no GPU on this node; install a CUDA build of torch, or set it to 0 to run on the CPU"
        )
    return torch.device("cuda", 0)


def _load_model(folder: Path, settings: SingleDevice, device: torch.device) -> Any:
    kwargs = settings.from_pretrained_kwargs
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=kwargs.get("trust_remote_code", False))
        _check_architecture(config)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings.dtype), **kwargs)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise LoadError(f"{folder.name} cannot be loaded: {str(error).splitlines()[0]}") from error
    if not model._supports_attention_backend:  # noqa: SLF001  the flag that Transformers has for this
        raise UnsupportedModelError(f"{type(model).__name__} does not accept an attention function from outside")
    return model.to(device).eval()


def _check_architecture(config: Any) -> None:
    """Refuse what paged attention cannot run: it needs plain attention, the same in all layers."""
    name = (config.architectures or [type(config).__name__])[0]
    text = config.get_text_config()
    other_layers = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if other_layers:
        raise UnsupportedModelError(f"{name} has layers that are not supported: {', '.join(sorted(other_layers))}")
    if getattr(text, "kv_lora_rank", None):
        raise UnsupportedModelError(f"{name} uses multi-head latent attention, which is not supported")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder model, which is not supported")


def _load_tokenizer(folder: Path, model: Any, settings: SingleDevice) -> HuggingFaceTokenizer:
    trusted = settings.from_pretrained_kwargs.get("trust_remote_code", False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except (OSError, ValueError, ImportError) as error:
        raise LoadError(f"the tokenizer of {folder.name} cannot be loaded: {str(error).splitlines()[0]}") from error
    return HuggingFaceTokenizer(
        tokenizer,
        vocab_size=model.config.get_text_config().vocab_size,
        eos_token_ids=_eos_token_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id),
    )


def _eos_token_ids(of_model: int | list[int] | None, of_tokenizer: int | None) -> frozenset[int]:
    ids = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(token_id for token_id in (*ids, of_tokenizer) if token_id is not None)


def _size_kv_cache(model: Any, generation: Generation) -> tuple[int, int]:
    """Context length and number of KV blocks."""
    config = model.config.get_text_config()
    context = min(generation.max_model_len or math.inf, getattr(config, "max_position_embeddings", None) or math.inf)
    if math.isinf(context):
        raise UnsupportedModelError("the model does not state its context length; set generation.max_model_len")
    context_blocks = -(-int(context) // BLOCK_SIZE)
    if generation.kv_cache_tokens:
        num_kv_blocks = -(-generation.kv_cache_tokens // BLOCK_SIZE)
    else:
        room = _tokens_in_memory(KVShape.of(config, model.dtype), model.device)
        num_kv_blocks = min(context_blocks * generation.max_batch_size, room // BLOCK_SIZE)
    capacity = num_kv_blocks * BLOCK_SIZE
    needed = context if generation.max_model_len else BLOCK_SIZE
    if capacity < needed:
        raise LoadError(
            f"the KV cache has room for {capacity} tokens, fewer than the {int(needed)} that one sequence may take; "
            "lower generation.max_model_len, or raise generation.kv_cache_tokens or the memory"
        )
    if capacity < context:
        logger.warning("context cut from %d to %d tokens: the KV cache holds no more", int(context), capacity)
    return int(min(context, capacity)), num_kv_blocks


def _tokens_in_memory(shape: KVShape, device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * GPU_KV_SHARE) // shape.token_bytes
    return int(psutil.virtual_memory().available * HOST_KV_SHARE) // shape.token_bytes
