"""The engine on llama.cpp against llama.cpp alone: the same model, threads, micro-batch and prompts, taken in turn.

The other side is what llama.cpp's own batched benchmark does: every prompt prefilled, then one `llama_decode` per token
for all sequences, their next tokens chosen by argmax; no scheduler, no text, no stops.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import numpy as np

from bench.engine import NEW_TOKENS, PROMPT_TOKENS, run_engine
from model_registry.loader import ZOO, load_entry
from model_registry.schema import RegistryEntry
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel
from workers.initializers.llama_cpp import EXACT_UBATCH
from workers.runners.llama_library import has_amx, llama_cpp
from workers.sources import default_cache_dir
from workers.sources.gguf_source import fetch_gguf_file

NUM_SEQUENCES = 8
FIRST_PLAIN_TOKEN = 100


def measure(rounds: int) -> None:
    entry = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct-GGUF.yaml")
    loaded = initializer_for(entry).load(entry, lambda line: print(f"  {line}"))
    plain = BatchedLlama(entry)
    print(
        f"\n{entry.model_id}: {NUM_SEQUENCES} at the same time, {PROMPT_TOKENS} prompt and {NEW_TOKENS} new tokens each"
    )
    print(f"median of {rounds} rounds\n")
    rates = [tokens_per_second(entry, loaded, plain, seed) for seed in range(rounds + 1)][1:]  # the first warms up
    ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(our / their for our, their in rates)
    print(f"engine {ours:.1f} tok/s, llama.cpp alone {theirs:.1f} tok/s, ratio {ratio:.3f}", flush=True)


def tokens_per_second(
    entry: RegistryEntry, loaded: LoadedModel, plain: BatchedLlama, seed: int, num_new_tokens: int = NEW_TOKENS
) -> tuple[float, float]:
    """Of the engine and of llama.cpp, one right after the other, first the one and then the other."""
    generator = random.Random(seed)
    vocab_size = loaded.tokenizer.vocab_size
    prompts = [
        [generator.randrange(FIRST_PLAIN_TOKEN, vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(NUM_SEQUENCES)
    ]
    num_tokens = NUM_SEQUENCES * num_new_tokens
    if seed % 2:
        ours = run_engine(build_engine(entry, loaded), prompts, num_new_tokens)
        theirs = plain.run(prompts, num_new_tokens)
    else:
        theirs = plain.run(prompts, num_new_tokens)
        ours = run_engine(build_engine(entry, loaded), prompts, num_new_tokens)
    return num_tokens / ours, num_tokens / theirs


class BatchedLlama:
    """Low-level batched decoding, with nothing around it."""

    def __init__(self, entry: RegistryEntry) -> None:
        path = fetch_gguf_file(entry.model, default_cache_dir(), lambda line: None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = not has_amx()
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = entry.model.generation.kv_cache_tokens
        context.n_batch = entry.model.generation.max_batch_tokens
        context.n_ubatch, context.n_seq_max, context.kv_unified = EXACT_UBATCH, NUM_SEQUENCES, True
        context.n_threads = context.n_threads_batch = int(entry.scaling.num_cpus_per_worker)
        self._context: Any = llama_cpp.llama_init_from_model(self._model, context)
        self._batch = llama_cpp.llama_batch_init(context.n_batch, 0, 1)

    def run(self, prompts: list[list[int]], num_new_tokens: int = NEW_TOKENS) -> float:
        """Seconds for all prompts and so many new tokens of each."""
        started = time.perf_counter()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        following: list[int] = []
        for sequence, prompt in enumerate(prompts):
            self._decode([(token_id, position, sequence) for position, token_id in enumerate(prompt)], last_only=True)
            following += self._argmax(1)
        for position in range(PROMPT_TOKENS, PROMPT_TOKENS + num_new_tokens - 1):
            self._decode([(token_id, position, sequence) for sequence, token_id in enumerate(following)])
            following = self._argmax(len(following))
        return time.perf_counter() - started

    def _decode(self, tokens: list[tuple[int, int, int]], *, last_only: bool = False) -> None:
        for row, (token_id, position, sequence) in enumerate(tokens):
            self._batch.token[row], self._batch.pos[row] = token_id, position
            self._batch.n_seq_id[row], self._batch.seq_id[row][0] = 1, sequence
            self._batch.logits[row] = not last_only or row == len(tokens) - 1
        self._batch.n_tokens = len(tokens)
        if llama_cpp.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama.cpp cannot run the batch")

    def _argmax(self, num_rows: int) -> list[int]:
        logits = llama_cpp.llama_get_logits(self._context)
        rows = np.ctypeslib.as_array(logits, shape=(num_rows, self._vocab_size))
        chosen: list[int] = rows.argmax(axis=-1).tolist()
        return chosen
