"""One rank of a tensor-parallel group in a process of its own, without Ray.

    python -m tests.support.tensor_parallel_rank RANK NUM_RANKS ADDRESS_FILE ENTRY_FILE REQUESTS_FILE

The leader writes its address into a file for the others. Each rank prints one JSON line with the shapes of its first
layer and how it runs; then the leader reads requests, and prints another with its logits and what it answers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from model_registry.contract import GenerationRequest, SequenceOutput
from model_registry.schema import RegistryEntry
from workers.engine.engine import Engine
from workers.engine.runner import Chunk, StepPlan
from workers.group import GroupListener, RankGroup, join_group
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel
from workers.runners.tensor_parallel import follow

HOST = "127.0.0.1"
SECRET = "tests"
BLOCK_SIZE = 16

Shapes = dict[str, list[int]]
"""Of the weights of a rank's first layer."""


class Loaded(msgspec.Struct):
    shapes: Shapes
    forward: str
    """Name of the class that runs the model."""
    note: str


class Answer(msgspec.Struct):
    logits: list[float]
    """After the prompt of the first request."""
    outputs: dict[str, SequenceOutput]


def main(rank: int, num_ranks: int, address_file: Path, entry_file: Path, requests_file: Path) -> None:
    entry = RegistryEntry.model_validate_json(entry_file.read_text())
    group = lead(num_ranks, address_file) if rank == 0 else join(rank, num_ranks, address_file)
    loaded = initializer_for(entry, group).load(entry, lambda line: None)
    runner: Any = loaded.runner
    forward = (runner._runner if rank == 0 else runner)._forward
    say(Loaded(shapes(forward._model), type(forward).__name__, loaded.note))
    if rank:
        follow(loaded.runner, group)  # type: ignore[arg-type]  # a follower's group, as the rank is not 0
    say(answer(entry, loaded, msgspec.json.decode(requests_file.read_bytes(), type=list[GenerationRequest])))
    os._exit(0)


def say(message: Loaded | Answer) -> None:
    sys.stdout.write(f"{msgspec.json.encode(message).decode()}\n")
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


def shapes(model: Any) -> Shapes:
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    weights = {"q": attention.q_proj, "k": attention.k_proj, "o": attention.o_proj, "down": mlp.down_proj}
    return {name: list(layer.weight.shape) for name, layer in weights.items()}


def answer(entry: RegistryEntry, loaded: LoadedModel, requests: list[GenerationRequest]) -> Answer:
    """Logits after the first prompt, and what the requests are answered, all of them running together."""
    first = loaded.tokenizer.encode_prompt(requests[0].prompt)
    block_ids = list(range(-(-len(first) // BLOCK_SIZE)))
    logits = loaded.runner.run(StepPlan([Chunk(first, 0, block_ids, num_logits=1)]))[0].tolist()
    return Answer(logits, run_together(build_engine(entry, loaded), requests))


def run_together(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, SequenceOutput]:
    """All outputs of each request as one."""
    for request in requests:
        engine.submit(engine.prepare(request))
    outputs: dict[str, SequenceOutput] = {}
    while engine.has_work:
        for output in engine.step():
            known = outputs.get(output.request_id)
            outputs[output.request_id] = known.followed_by(output) if known else output
    return outputs


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *(Path(argument) for argument in sys.argv[3:6]))
