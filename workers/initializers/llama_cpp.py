"""LlamaCpp: a GGUF file as it is, on the CPU or on GPUs, run by llama.cpp under the same engine as every other model.

Turns the registry's keys into llama.cpp's parameters, sizes its KV cells, and runs one token before it serves. What it
cannot do it refuses by name.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from model_registry.schema import Embedding, Generation, LlamaCpp, RegistryEntry
from workers.engine.embeddings import Passage
from workers.engine.runner import Chunk, StepPlan, Truncate
from workers.engine.slot_kv_cache import SlotKVCache
from workers.errors import LoadError
from workers.initializers.base import LoadedModel, Progress, embedding_only
from workers.initializers.llama_log import first_error, redirect_log
from workers.initializers.llama_parameters import KEY, LlamaParameters, parse_parameters
from workers.runners.llama_cpp import ContextSizes, LlamaCppRunner
from workers.runners.llama_embedding import LlamaCppEmbedder
from workers.runners.llama_library import has_amx, llama_cpp
from workers.runners.llama_model import LlamaModel
from workers.runners.llama_tokenizer import LlamaCppTokenizer
from workers.runners.pooling import Pooling, VectorShape
from workers.runners.sampling import TorchSampler
from workers.sources import default_cache_dir
from workers.sources.gguf_source import fetch_gguf_file

ALL_LAYERS: Final = -1
HOST_KV_SHARE: Final = 0.25
"""Share of the host's available memory that the KV cells may take when the registry does not say."""
GPU_KV_SHARE: Final = 0.9
"""Share of the GPU memory left after loading, likewise."""
EXACT_UBATCH: Final = 63
"""Tokens that llama.cpp computes at a time on the CPU, unless the registry says (`n_ubatch`). From 64 on its attention
works in tiles, and a sequence's logits come to depend on what lies beside it in the cache."""
PROMPT_LOGITS_ROWS: Final = 64
MAX_SLOTS: Final = llama_cpp.llama_max_parallel_sequences()
_BYTES_PER_VALUE: Final = {0: 4.0, 1: 2.0, 2: 0.5625, 3: 0.625, 6: 0.6875, 7: 0.75, 8: 1.0625, 20: 0.5625, 30: 2.0}
"""Of the KV types, by their `ggml_type`."""
_F16: Final = 1
_POOLINGS: Final[Mapping[int | None, Pooling]] = {1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST}
"""By their `llama_pooling_type`."""


class LlamaCppInitializer:
    """Loads one GGUF file."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel:
        settings = entry.model.initialization.initializer
        if not isinstance(settings, LlamaCpp):
            raise TypeError(f"LlamaCppInitializer cannot load {settings.type}")
        parameters = _parameters_for(entry, settings)
        # Sampling is a moment between two steps; more threads would wait for llama.cpp's own, which are still spinning.
        torch.set_num_threads(1)
        redirect_log(verbose=parameters.verbose)
        path = fetch_gguf_file(entry.model, default_cache_dir(), progress)
        llama_cpp.llama_backend_init()
        if parameters.numa:
            llama_cpp.llama_numa_init(parameters.numa)
        model = _load_model(path, parameters, progress)
        tokenizer, embedder = LlamaCppTokenizer(model), _embedder(model, parameters, entry.model.embedding)
        if model.is_encoder:
            progress("warming up")
            embedder.embed([Passage((0,), embedder.num_dimensions)])
            return embedding_only(embedder, tokenizer, entry.model.generation, model.context_length)
        runner = LlamaCppRunner(model)

        def with_sizes(generation: Generation) -> LoadedModel:
            sized = entry.model_copy(update={"model": entry.model.model_copy(update={"generation": generation})})
            parameters = _parameters_for(sized, settings)
            max_model_len, sizes = _sizes(model, parameters, generation, held=runner.sizes)
            return LoadedModel(
                runner=runner,
                sampler=TorchSampler(),
                tokenizer=tokenizer,
                answer_format=tokenizer.answer_format,
                max_model_len=max_model_len,
                new_kv_cache=partial(_new_kv_cache, model, runner, sizes, parameters),
                max_logits_rows=_logits_rows(sizes),
                with_sizes=with_sizes,
            )

        loaded = replace(with_sizes(entry.model.generation), embedder=embedder)
        loaded.new_kv_cache()
        progress("warming up")
        _warm_up(runner)
        return loaded


def _parameters_for(entry: RegistryEntry, settings: LlamaCpp) -> LlamaParameters:
    """llama.cpp's parameters, with what other keys of the registry decide. Raises `LoadError` where two contradict."""
    parameters = parse_parameters(settings.model_init_kwargs)
    generation, context = entry.model.generation, parameters.context
    if generation.max_batch_size > MAX_SLOTS:
        raise LoadError(
            f"generation.max_batch_size is {generation.max_batch_size}; llama.cpp runs {MAX_SLOTS} sequences at most"
        )
    if context.setdefault("n_batch", generation.max_batch_tokens) < generation.max_batch_tokens:
        raise LoadError(
            f"{KEY}.n_batch is {context['n_batch']}, less than generation.max_batch_tokens "
            f"({generation.max_batch_tokens}), the tokens of one step; make them the same"
        )
    num_cells = generation.kv_cache_tokens
    if num_cells and context.setdefault("n_ctx", num_cells) != num_cells:
        raise LoadError(
            f"{KEY}.n_ctx is {context['n_ctx']} and generation.kv_cache_tokens is {num_cells}; both say how many "
            "tokens the KV cache holds for all sequences together: give one of them"
        )
    num_threads = max(1, math.ceil(entry.scaling.num_cpus_per_worker))
    context.setdefault("n_threads", num_threads)
    context.setdefault("n_threads_batch", num_threads)
    _check_gpus(parameters, entry.scaling.num_gpus_per_worker)
    return parameters


def _check_gpus(parameters: LlamaParameters, num_gpus: float) -> None:
    layers = parameters.model.setdefault("n_gpu_layers", ALL_LAYERS if num_gpus else 0)
    if layers and not num_gpus:
        raise LoadError(
            f"{KEY}.n_gpu_layers is {layers}, but scaling_config.num_gpus_per_worker is 0; raise it, or remove the key"
        )
    if layers and not llama_cpp.llama_supports_gpu_offload():
        raise LoadError(
            f"scaling_config.num_gpus_per_worker is {num_gpus:g}, but llama-cpp-python was built without GPU support; "
            "build it with CMAKE_ARGS=-DGGML_CUDA=on, or set num_gpus_per_worker to 0"
        )
    if len(parameters.tensor_split) > llama_cpp.llama_max_devices():
        raise LoadError(f"{KEY}.tensor_split names more than {llama_cpp.llama_max_devices()} devices")


def _load_model(path: Path, parameters: LlamaParameters, progress: Progress) -> LlamaModel:
    native = llama_cpp.llama_model_default_params()
    _set_fields(native, parameters.model)
    native.load_mode = parameters.load_mode
    native.use_extra_bufts = not has_amx()
    shares = (ctypes.c_float * llama_cpp.llama_max_devices())(*parameters.tensor_split)
    if parameters.tensor_split:
        native.tensor_split = shares
    native.progress_callback = _progress_callback(progress)
    pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), native)
    if not pointer:
        raise LoadError(f"llama.cpp cannot load {path.name}: {first_error()}; fetch the file again or choose another")
    return LlamaModel(pointer)


def _progress_callback(progress: Progress) -> Any:
    told = -1

    def on_progress(share: float, _user_data: Any) -> bool:
        nonlocal told
        percent = int(100 * share) // 10 * 10
        if percent > told:
            told = percent
            progress(f"loading weights: {percent} %")
        return True

    return llama_cpp.llama_progress_callback(on_progress)


def _new_kv_cache(
    model: LlamaModel, runner: LlamaCppRunner, sizes: ContextSizes, parameters: LlamaParameters
) -> SlotKVCache:
    runner.resize(sizes, partial(_new_context, model, parameters))
    return SlotKVCache(sizes.num_slots, sizes.num_cells, window=model.window)


def _embedder(model: LlamaModel, parameters: LlamaParameters, embedding: Embedding) -> LlamaCppEmbedder:
    own = _POOLINGS.get(model.own_pooling, Pooling.MEAN if model.is_encoder else Pooling.LAST)
    new_context = partial(_new_context, model, parameters, embeds=True)
    return LlamaCppEmbedder(model, VectorShape.of(embedding, own), new_context, parameters.context["n_batch"])


def _new_context(model: LlamaModel, parameters: LlamaParameters, sizes: ContextSizes, *, embeds: bool = False) -> int:
    native = llama_cpp.llama_context_default_params()
    _set_fields(native, parameters.context)
    native.n_ctx = sizes.num_cells
    if "n_ubatch" not in parameters.context and not parameters.model["n_gpu_layers"]:
        native.n_ubatch = EXACT_UBATCH
    native.n_seq_max = sizes.num_slots
    native.n_outputs_max = _logits_rows(sizes)
    if embeds:
        native.embeddings = True
        native.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        native.n_batch = native.n_outputs_max = sizes.max_batch_tokens
    if model.is_encoder:
        native.n_ubatch = native.n_batch
    native.n_ubatch = min(native.n_ubatch, native.n_batch)
    native.kv_unified = True
    native.swa_full = True
    context: int | None = llama_cpp.llama_init_from_model(model.pointer, native)
    if not context:
        raise LoadError(
            f"llama.cpp cannot make a context of {sizes.num_cells} KV cells: {first_error()}; "
            f"check {KEY}, or lower generation.kv_cache_tokens"
        )
    return context


def _logits_rows(sizes: ContextSizes) -> int:
    """Of one step: one for each sequence, and enough for prompts whose logits are all wanted."""
    return max(sizes.num_slots, PROMPT_LOGITS_ROWS)


def _set_fields(native: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(native, name, value)


def _sizes(
    model: LlamaModel, parameters: LlamaParameters, generation: Generation, *, held: ContextSizes | None
) -> tuple[int, ContextSizes]:
    """Context length of one sequence, and the sizes for all; the `held` ones will have been given back."""
    num_held = 0 if held is None else held.num_cells
    given: int | None = parameters.context.get("n_ctx")
    own = math.inf if parameters.changes_rope and (generation.max_model_len or given) else model.context_length
    context = int(min(generation.max_model_len or math.inf, own, given or math.inf))
    num_cells = given or min(context * generation.max_batch_size, _tokens_in_memory(model, parameters, num_held))
    if num_cells < (generation.max_model_len or 1):
        raise LoadError(
            f"the KV cache has room for {num_cells} tokens, fewer than generation.max_model_len "
            f"({generation.max_model_len}); lower it, or raise generation.kv_cache_tokens or the memory"
        )
    num_slots = min(2 * generation.max_batch_size, MAX_SLOTS)  # half of them to remember prefixes in
    n_batch = parameters.context["n_batch"]
    return min(context, num_cells), ContextSizes(num_slots=num_slots, num_cells=num_cells, max_batch_tokens=n_batch)


def _tokens_in_memory(model: LlamaModel, parameters: LlamaParameters, num_held: int) -> int:
    types = (parameters.context.get(name, _F16) for name in ("type_k", "type_v"))
    token_bytes = model.kv_values_per_token() * sum(_BYTES_PER_VALUE[kv_type] for kv_type in types)
    on_gpu = parameters.model["n_gpu_layers"] and parameters.context.get("offload_kqv", True)
    if on_gpu and torch.cuda.is_available():
        share, free = GPU_KV_SHARE, torch.cuda.mem_get_info()[0]
    else:
        share, free = HOST_KV_SHARE, psutil.virtual_memory().available
    return int(share * (free / token_bytes + num_held))


def _warm_up(runner: LlamaCppRunner) -> None:
    """One token, which touches every weight. Raises `LoadError` when the logits are not numbers."""
    logits = runner.run(StepPlan([Chunk([0], 0, [0], num_logits=1)], [Truncate(0, 0)]))
    if not bool(torch.isfinite(logits).all()):
        raise LoadError("the model computes logits that are not finite; the file may be damaged")
