"""Loads nothing: the echo engine for tests of everything around a model."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from model_registry.schema import Echo, Generation, RegistryEntry
from workers.engine.echo import BLOCK_SIZE, ByteTokenizer, EchoEmbedder, EchoRunner, EchoSampler
from workers.engine.paged_kv_cache import PagedKVCache
from workers.errors import LoadError
from workers.initializers.base import LoadedModel, Progress

MAX_MODEL_LEN = 4096
CAPACITY_TOKENS = 65536


class EchoInitializer:
    """Builds an `EchoRunner` with the step time that the registry sets."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel:
        settings = entry.model.initialization.initializer
        if not isinstance(settings, Echo):
            raise TypeError(f"EchoInitializer cannot load {settings.type}")
        if settings.load_time_s:
            progress(f"pretending to load for {settings.load_time_s:g} s")
            time.sleep(settings.load_time_s)
        embedding = entry.model.embedding
        embedder = EchoEmbedder(
            normalizes=embedding.normalize, can_be_cut=embedding.dimensions, step_time_s=settings.step_time_s
        )
        return replace(_sized(EchoRunner(0, settings.step_time_s), entry.model.generation), embedder=embedder)


def _sized(runner: EchoRunner, generation: Generation) -> LoadedModel:
    num_kv_blocks = (generation.kv_cache_tokens or CAPACITY_TOKENS) // BLOCK_SIZE
    capacity = num_kv_blocks * BLOCK_SIZE
    wanted = min(generation.max_model_len or BLOCK_SIZE, MAX_MODEL_LEN)
    if capacity < wanted:
        raise LoadError(
            f"the KV cache has room for {capacity} tokens, fewer than generation.max_model_len ({wanted}); lower "
            "it, or raise generation.kv_cache_tokens"
        )
    max_model_len = min(generation.max_model_len or MAX_MODEL_LEN, MAX_MODEL_LEN, capacity)
    return LoadedModel(
        runner=runner,
        sampler=EchoSampler(),
        tokenizer=ByteTokenizer(),
        max_model_len=max_model_len,
        new_kv_cache=partial(_new_kv_cache, runner, num_kv_blocks),
        with_sizes=partial(_sized, runner),
    )


def _new_kv_cache(runner: EchoRunner, num_kv_blocks: int) -> PagedKVCache:
    runner.resize(num_kv_blocks)
    return PagedKVCache(num_kv_blocks, BLOCK_SIZE)
