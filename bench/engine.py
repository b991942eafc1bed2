"""The engine's tokens per second against Transformers' own `generate` on the same prompts, model and threads.

`generate` gets its best case: prompts of one length, all of them starting and ending together.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from model_registry.contract import GenerationRequest, SamplingParams, TokenPrompt
from model_registry.loader import ZOO, load_entry
from workers.engine.engine import Engine
from workers.initializers import build_engine, initializer_for
from workers.sources import default_cache_dir, fetch_model

PROMPT_TOKENS = 100
NEW_TOKENS = 64
BATCH_SIZES = (1, 8, 32)
FIRST_PLAIN_TOKEN = 100


def measure(rounds: int) -> None:
    entry = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml")
    generation = entry.model.generation.model_copy(update={"max_batch_size": max(BATCH_SIZES)})
    entry = entry.model_copy(update={"model": entry.model.model_copy(update={"generation": generation})})
    loaded = initializer_for(entry).load(entry, lambda line: print(f"  {line}"))
    model = _load_model(fetch_model(entry.model, default_cache_dir(), lambda line: None))
    print(f"\n{entry.model_id}, float32, {torch.get_num_threads()} threads")
    print(f"{PROMPT_TOKENS} prompt and {NEW_TOKENS} new tokens each, median of {rounds} rounds\n")
    print(f"{'concurrent':>10} {'engine tok/s':>13} {'generate tok/s':>15} {'ratio':>6}")
    for batch_size in BATCH_SIZES:
        rates = [
            _tokens_per_second(batch_size, seed, lambda: build_engine(entry, loaded), model) for seed in range(rounds)
        ]
        ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"{batch_size:>10} {ours:>13.1f} {theirs:>15.1f} {ours / theirs:>6.2f}", flush=True)


def _tokens_per_second(batch_size: int, seed: int, new_engine: Callable[[], Engine], model: Any) -> tuple[float, float]:
    """Of the engine and of `generate`, one right after the other on the same prompts."""
    generator = random.Random(seed)
    prompts = [
        [generator.randrange(FIRST_PLAIN_TOKEN, model.config.vocab_size) for _ in range(PROMPT_TOKENS)]
        for _ in range(batch_size)
    ]
    num_tokens = batch_size * NEW_TOKENS
    return num_tokens / run_engine(new_engine(), prompts), num_tokens / _run_generate(model, prompts)


def run_engine(engine: Engine, prompts: list[list[int]], num_new_tokens: int = NEW_TOKENS) -> float:
    """Seconds until all prompts are answered, all submitted at once."""
    sampling = SamplingParams(temperature=0, max_tokens=num_new_tokens, ignore_eos=True)
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        request = GenerationRequest(request_id=str(number), prompt=TokenPrompt(tuple(prompt)), sampling=sampling)
        engine.submit(engine.prepare(request))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


def _run_generate(model: Any, prompts: list[list[int]]) -> float:
    ids = torch.tensor(prompts)
    started = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
    return time.perf_counter() - started


def _load_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
