"""What every initializer of the Transformers family does: load config, model and tokenizer, size the KV cache, build
the runner, and prove before serving that the model runs on paged attention. What cannot be run is refused by name.

Knows neither how weights are spread over devices nor over ranks: the initializers decide that.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from model_registry.schema import DeepSpeed, DeviceMap, Embedding, Generation, RegistryEntry, SingleDevice, TorchCompile
from workers.engine.paged_kv_cache import PagedKVCache
from workers.errors import DeviceLostError, LoadError, UnsupportedModelError, first_line
from workers.initializers.base import LoadedModel, Progress
from workers.runners.attention import LayerShape
from workers.runners.compiled import MAX_LOGITS_ROWS, CompiledForward, keep_graphs_in
from workers.runners.embedding import DecoderEmbedder
from workers.runners.pooling import Pooling, VectorShape, own_pooling
from workers.runners.sampling import TorchSampler
from workers.runners.tokenizer import HuggingFaceTokenizer
from workers.runners.transformers import (
    BLOCK_SIZE,
    EagerForward,
    TransformersRunner,
    check_against_own_attention,
    measure_layers,
    reference_logits,
)
from workers.sources import default_cache_dir

logger = logging.getLogger(__name__)

TransformersSettings = SingleDevice | DeviceMap | DeepSpeed

HOST_KV_SHARE = 0.25
"""Share of the host's available memory that a KV cache may take when the registry does not say."""
GPU_KV_SHARE = 0.9
"""Share of the GPU memory left after loading, likewise."""
LOGITS_BYTES = 64 * 1024 * 1024
"""That the logits of one step may take where those of whole prompts are wanted."""
DYNAMIC_WARM_UP_SIZES = (1, 2, 16)
"""One token is a shape of its own to the compiler; from the second size on, dimensions are dynamic."""
RESERVED_KWARGS = ("dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config")
"""Arguments of `from_pretrained` that other keys of the registry decide."""


def prepare_process(entry: RegistryEntry, settings: TransformersSettings) -> torch.device:
    """Check the settings, set the number of compute threads; returns this process's main device.

    Raises `LoadError` when a GPU is asked for and there is none.
    """
    for name in RESERVED_KWARGS:
        if name in settings.from_pretrained_kwargs:
            raise UnsupportedModelError(
                f"initializer.from_pretrained_kwargs.{name} cannot be set here; other keys of the registry decide it"
            )
    if settings.use_bettertransformer:
        logger.info("use_bettertransformer: it left Transformers; attention is PyTorch's own here in any case")
    if "OMP_NUM_THREADS" not in os.environ:  # in a pool it is set, by the registry's own variables or by the pool
        torch.set_num_threads(max(1, math.ceil(entry.scaling.num_cpus_per_worker)))
    num_gpus = entry.scaling.num_gpus_per_worker
    if not num_gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LoadError(
            f"scaling_config.num_gpus_per_worker is {num_gpus:g}, "
            "but torch sees no GPU on this node; install a CUDA build of torch, or set it to 0 to run on the CPU"
        )
    if num_gpus < 1:
        # Ray shares the GPU between replicas by counting only; this is what keeps each to its part of the memory.
        torch.cuda.set_per_process_memory_fraction(num_gpus, 0)
    return torch.device("cuda", 0)


def load_config(folder: Path, settings: TransformersSettings) -> Any:
    """The model's config. Raises `LoadError`."""
    trusted = settings.from_pretrained_kwargs.get("trust_remote_code", False)
    return loaded_from(folder, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=trusted))


def load_decoder_config(folder: Path, settings: TransformersSettings) -> Any:
    """The model's config, if its architecture can be run. Raises `LoadError`."""
    config = load_config(folder, settings)
    _check_architecture(config)
    return config


def load_weights(folder: Path, settings: TransformersSettings, **placement: Any) -> Any:
    """The model in evaluation mode; `placement` are further arguments of `from_pretrained`. Raises `LoadError`."""
    load_decoder_config(folder, settings)
    kwargs = {**settings.from_pretrained_kwargs, **placement}
    dtype = getattr(torch, settings.dtype)
    model = loaded_from(folder, lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs))
    check_attention_seam(model)
    return model.eval()


def check_attention_seam(model: Any) -> None:
    if not model._supports_attention_backend:  # noqa: SLF001  the flag that Transformers has for this
        raise UnsupportedModelError(f"{type(model).__name__} does not accept an attention function from outside")


def load_tokenizer(folder: Path, model: Any, settings: TransformersSettings) -> HuggingFaceTokenizer:
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


def build_loaded_model(
    model: Any,
    tokenizer: HuggingFaceTokenizer,
    settings: TransformersSettings,
    generation: Generation,
    progress: Progress,
    *,
    shape: VectorShape | None = None,
    prepare: Callable[[], object] = lambda: None,
    agree_on_blocks: Callable[[int], int] = lambda num_blocks: num_blocks,
) -> LoadedModel:
    """A runner over the placed model, checked against the model's own attention.

    `shape` is that of its embeddings; without, it makes none. `prepare` changes the model's layers, after its own
    attention was asked for the expected logits and before memory is measured; `agree_on_blocks` turns the number of KV
    blocks that fit here into the one that fits everywhere.
    """
    expected = reference_logits(model)
    prepare()
    layers = measure_layers(model)
    max_model_len, num_kv_blocks = _size_kv_cache(model, layers, generation, agree_on_blocks)
    runner = TransformersRunner(
        EagerForward(model, layers[0].device), layers, num_kv_blocks=num_kv_blocks, max_model_len=max_model_len
    )
    progress("warming up")
    check_against_own_attention(model, runner, expected)
    compile_note = ""
    if settings.torch_compile is not None:
        compile_note = _compile(model, layers[0].device, runner, settings.torch_compile, generation, progress)
        check_against_own_attention(model, runner, expected)
    embedder, embedder_note = _embedder(model, layers[0].device, shape)
    note = "; ".join(part for part in (compile_note, embedder_note) if part)

    def with_sizes(generation: Generation) -> LoadedModel:
        sizes = _size_kv_cache(model, layers, generation, agree_on_blocks, num_held=runner.num_kv_blocks * BLOCK_SIZE)
        return sized(*sizes)

    def sized(max_model_len: int, num_kv_blocks: int) -> LoadedModel:
        return LoadedModel(
            runner=runner,
            sampler=TorchSampler(),
            tokenizer=tokenizer,
            answer_format=tokenizer.answer_format,
            max_model_len=max_model_len,
            new_kv_cache=partial(_new_kv_cache, runner, max_model_len, num_kv_blocks),
            max_logits_rows=_logits_rows(settings, tokenizer.vocab_size),
            embedder=embedder,
            note=note,
            with_sizes=None if settings.torch_compile is not None else with_sizes,
        )

    return sized(max_model_len, num_kv_blocks)


def vector_shape(folder: Path, embedding: Embedding) -> VectorShape:
    """What the vectors of a model that generates are like."""
    return VectorShape.of(embedding, own_pooling(folder, Pooling.LAST))


def _logits_rows(settings: TransformersSettings, vocab_size: int) -> int:
    """Of one step at most; a compiled graph has a fixed number."""
    return MAX_LOGITS_ROWS if settings.torch_compile is not None else LOGITS_BYTES // (4 * vocab_size)


def _new_kv_cache(runner: TransformersRunner, max_model_len: int, num_kv_blocks: int) -> PagedKVCache:
    runner.resize(num_kv_blocks=num_kv_blocks, max_model_len=max_model_len)
    return PagedKVCache(num_kv_blocks, BLOCK_SIZE)


def _compile(
    model: Any,
    device: torch.device,
    runner: TransformersRunner,
    settings: TorchCompile,
    generation: Generation,
    progress: Progress,
) -> str:
    """Make the runner use a compiled forward, with every step size warmed up; returns why it does not, or nothing."""
    keep_graphs_in(default_cache_dir() / "torchinductor")
    started_at = time.monotonic()
    forward = CompiledForward(
        model,
        device,
        settings,
        max_batch_size=generation.max_batch_size,
        max_batch_tokens=generation.max_batch_tokens,
    )
    runner.use(forward)
    try:
        for number, size in enumerate(forward.sizes or DYNAMIC_WARM_UP_SIZES, start=1):
            progress(f"compiling steps of {size} tokens ({number} of {len(forward.sizes or DYNAMIC_WARM_UP_SIZES)})")
            runner.warm_up(size)
    except DeviceLostError:
        raise
    except Exception as error:
        # An edge: compilers fail in ways of their own, and a model that runs slower serves better than none.
        logger.warning("torch_compile: running eagerly, because compiling failed", exc_info=error)
        runner.use(EagerForward(model, device))
        cause = getattr(error, "inner_exception", error)
        return f"runs eagerly: torch_compile failed ({type(cause).__name__}: {first_line(cause)})"
    logger.info("torch_compile: warmed up in %.1f s", time.monotonic() - started_at)
    return ""


def _embedder(model: Any, device: torch.device, shape: VectorShape | None) -> tuple[DecoderEmbedder | None, str]:
    """If one is wanted and can be had, an embedder; else why it cannot, or nothing."""
    if shape is None or model.base_model is model:
        return None, ""
    try:
        return DecoderEmbedder(model, device, shape), ""
    except DeviceLostError:
        raise
    except Exception as error:
        # An edge: what is under a head may want other arguments, and a model that only generates serves too.
        logger.warning("embeddings: none are made, because the first failed", exc_info=error)
        return None, f"makes no embeddings: the first failed ({type(error).__name__}: {first_line(error)})"


def loaded_from(folder: Path, load: Callable[[], Any]) -> Any:
    """What Transformers makes of the folder. Raises `LoadError`."""
    try:
        return load()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise LoadError(f"{folder.name} cannot be loaded: {str(error).splitlines()[0]}") from error


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


def _eos_token_ids(of_model: int | list[int] | None, of_tokenizer: int | None) -> frozenset[int]:
    ids = of_model if isinstance(of_model, list) else [of_model]
    return frozenset(token_id for token_id in (*ids, of_tokenizer) if token_id is not None)


def _size_kv_cache(
    model: Any,
    layers: Sequence[LayerShape],
    generation: Generation,
    agree_on_blocks: Callable[[int], int],
    *,
    num_held: int = 0,
) -> tuple[int, int]:
    """Context length and number of KV blocks; `num_held` tokens that have memory now will have given it back."""
    config = model.config.get_text_config()
    context = min(generation.max_model_len or math.inf, getattr(config, "max_position_embeddings", None) or math.inf)
    if math.isinf(context):
        raise UnsupportedModelError("the model does not state its context length; set generation.max_model_len")
    if generation.kv_cache_tokens:
        num_kv_blocks = -(-generation.kv_cache_tokens // BLOCK_SIZE)
    else:
        wished = -(-int(context) // BLOCK_SIZE) * generation.max_batch_size
        num_kv_blocks = agree_on_blocks(min(wished, _tokens_in_memory(layers, num_held) // BLOCK_SIZE))
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


def _tokens_in_memory(layers: Sequence[LayerShape], num_held: int) -> int:
    """Tokens whose keys and values fit on every device, each holding those of its own layers."""
    token_bytes: dict[torch.device, int] = {}
    for layer in layers:
        token_bytes[layer.device] = token_bytes.get(layer.device, 0) + layer.token_bytes
    return min(_free_bytes(device, num_held * size) // size for device, size in token_bytes.items())


def _free_bytes(device: torch.device, held_bytes: int) -> int:
    """Of them, what a KV cache may take once the present one, of so many bytes, is given back."""
    if device.type != "cuda":
        # Of a present cache only what was written is taken, see `_zeros`; nobody knows how much that is.
        return int(psutil.virtual_memory().available * HOST_KV_SHARE)
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - torch.cuda.memory_allocated(device)
    return int((min(free + unused, allowed) + held_bytes) * GPU_KV_SHARE)
