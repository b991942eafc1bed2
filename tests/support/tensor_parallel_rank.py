"""One rank of a tensor-parallel group in a process of its own, without Ray.

    python -m tests.support.tensor_parallel_rank RANK NUM_RANKS ADDRESS_FILE ENTRY_FILE [PROBE_FILE]

The leader writes its address into a file for the others. Each rank prints one JSON line with the shapes of its first
layer and how it runs; then the leader reads a probe, and prints another with its logits and greedy continuations.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from model_registry.contract import GenerationRequest, SamplingParams, TokenPrompt
from model_registry.schema import RegistryEntry
from workers.engine.runner import Chunk, StepPlan
from workers.group import GroupListener, RankGroup, join_group
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel
from workers.runners.tensor_parallel import follow

HOST = "127.0.0.1"
SECRET = "tests"
BLOCK_SIZE = 16


def main(rank: int, num_ranks: int, address_file: Path, entry_file: Path, probe_file: Path) -> None:
    entry = RegistryEntry.model_validate_json(entry_file.read_text())
    group = lead(num_ranks, address_file) if rank == 0 else join(rank, num_ranks, address_file)
    loaded = initializer_for(entry, group).load(entry, lambda line: None)
    runner: Any = loaded.runner
    forward = (runner._runner if rank == 0 else runner)._forward
    say({"shapes": shapes(forward._model), "forward": type(forward).__name__, "note": loaded.note})
    if rank:
        follow(loaded.runner, group)  # type: ignore[arg-type]  # a follower's group, as the rank is not 0
    say(answer(entry, loaded, json.loads(probe_file.read_text())))
    os._exit(0)


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(message)}\n")
    sys.stdout.flush()


def lead(num_ranks: int, address_file: Path) -> RankGroup:
    listener = GroupListener(HOST, SECRET)
    partial = address_file.with_suffix(".partial")
    partial.write_text(listener.address)
    partial.rename(address_file)
    return listener.accept(num_ranks)


def join(rank: int, num_ranks: int, address_file: Path) -> RankGroup:
    deadline = time.monotonic() + 60
    while not address_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return join_group(address_file.read_text(), SECRET, rank, num_ranks, HOST)


def shapes(model: Any) -> dict[str, list[int]]:
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    weights = {"q": attention.q_proj, "k": attention.k_proj, "o": attention.o_proj, "down": mlp.down_proj}
    return {name: list(layer.weight.shape) for name, layer in weights.items()}


def answer(entry: RegistryEntry, loaded: LoadedModel, probe: dict[str, Any]) -> dict[str, Any]:
    """Logits after the first prompt, and what follows each prompt greedily, all of them running together."""
    first = probe["prompts"][0]
    block_ids = list(range(-(-len(first) // BLOCK_SIZE)))
    logits = loaded.runner.run(StepPlan([Chunk(first, 0, block_ids, wants_logits=True)]))[0].tolist()
    engine = build_engine(entry, loaded)
    sampling = SamplingParams(temperature=0, max_tokens=probe["max_tokens"], ignore_eos=True)
    for number, token_ids in enumerate(probe["prompts"]):
        prompt = TokenPrompt(tuple(token_ids))
        engine.submit(engine.prepare(GenerationRequest(request_id=str(number), prompt=prompt, sampling=sampling)))
    generated: list[list[int]] = [[] for _ in probe["prompts"]]
    while engine.has_work:
        for output in engine.step():
            generated[int(output.request_id)] += output.token_ids
    return {"logits": logits, "generated": generated}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *(Path(argument) for argument in sys.argv[3:6]))
