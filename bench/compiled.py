"""What `torch_compile` brings: the engine on the compiled model against the eager one, the same prompts in turn.

Both must generate the same greedy tokens. The time that compiling takes is printed too: a replica spends it before it
is ready, once per node and settings as long as the compiler's cache is kept.
"""

from __future__ import annotations

import random
import statistics
import time

from bench.engine import FIRST_PLAIN_TOKEN, NEW_TOKENS, PROMPT_TOKENS, run_engine
from model_registry.loader import ZOO, load_entry
from model_registry.schema import RegistryEntry, TorchCompile
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel

BATCH_SIZES = (1, 8)


def measure(rounds: int) -> None:
    eager = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml")
    compiled = _compiled(eager)
    sides = [(entry, _load(name, entry)) for name, entry in (("eager", eager), ("compiled", compiled))]
    print(f"\n{eager.model_id}: {PROMPT_TOKENS} prompt and {NEW_TOKENS} new tokens each, median of {rounds} rounds\n")
    print(f"{'concurrent':>10} {'compiled tok/s':>15} {'eager tok/s':>12} {'speed-up':>9}")
    for batch_size in BATCH_SIZES:
        rates = [
            [_tokens_per_second(entry, loaded, batch_size, seed) for entry, loaded in sides] for seed in range(rounds)
        ]
        plain, fast = (statistics.median(column) for column in zip(*rates, strict=True))
        speed_up = statistics.median(after / before for before, after in rates)
        print(f"{batch_size:>10} {fast:>15.1f} {plain:>12.1f} {speed_up:>9.2f}", flush=True)


def _compiled(entry: RegistryEntry) -> RegistryEntry:
    """The entry with `torch_compile: {}`, which is inductor with its defaults."""
    initialization = entry.model.initialization
    initializer = initialization.initializer.model_copy(update={"torch_compile": TorchCompile()})
    return entry.model_copy(
        update={
            "model": entry.model.model_copy(
                update={"initialization": initialization.model_copy(update={"initializer": initializer})}
            )
        }
    )


def _load(name: str, entry: RegistryEntry) -> LoadedModel:
    started = time.perf_counter()
    loaded = initializer_for(entry).load(entry, lambda line: print(f"  {name}: {line}"))
    print(f"{name}: loaded in {time.perf_counter() - started:.1f} s {loaded.note}")
    return loaded


def _tokens_per_second(entry: RegistryEntry, loaded: LoadedModel, batch_size: int, seed: int) -> float:
    generator = random.Random(seed)
    prompts = [
        [generator.randrange(FIRST_PLAIN_TOKEN, loaded.tokenizer.vocab_size) for _ in range(PROMPT_TOKENS)]
        for _ in range(batch_size)
    ]
    return batch_size * NEW_TOKENS / run_engine(build_engine(entry, loaded), prompts)
