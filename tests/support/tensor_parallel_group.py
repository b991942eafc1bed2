"""What tests do with a tensor-parallel group: run its ranks as processes and compare with the unsharded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM

from model_registry.contract import GenerationRequest, SamplingParams, SequenceOutput, TokenPrompt
from tests.support.tensor_parallel_rank import Answer, Loaded, Shapes

MAX_TOKENS = 12
TIMEOUT_S = 150
TOLERANCE = 1e-3
"""Ranks add up in another order than one process does; float32 explains far less than this."""


@dataclass(frozen=True)
class Group:
    """What the ranks of one group printed."""

    shapes: list[Shapes]
    forwards: list[str]
    """What runs the model on each rank."""
    notes: list[str]
    logits: torch.Tensor
    outputs: dict[str, SequenceOutput]
    """By request."""


def prompts(vocab_size: int) -> list[list[int]]:
    return [[(11 + 37 * number + 101 * place) % vocab_size for place in range(9 + 7 * number)] for number in range(4)]


def greedily(token_ids: list[list[int]]) -> list[GenerationRequest]:
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    return [
        GenerationRequest(request_id=str(number), prompt=TokenPrompt(tuple(prompt)), sampling=sampling)
        for number, prompt in enumerate(token_ids)
    ]


def run_group(
    folder: Path,
    num_ranks: int,
    work: Path,
    requests: list[GenerationRequest],
    *,
    num_gpus_per_worker: int = 0,
    max_batch_tokens: int = 256,
    **initializer: Any,
) -> Group:
    """Load the model over so many ranks, in the folder `work`, and answer the requests, all running together."""
    entry = {
        "model_config": {
            "model_id": "tests/model",
            "initialization": {
                "hf_model_id": str(folder),
                "initializer": {"type": "DeepSpeed", "dtype": "float32", **initializer},
            },
            "generation": {"max_batch_size": 8, "max_batch_tokens": max_batch_tokens, "kv_cache_tokens": 2048},
        },
        "scaling_config": {
            "num_gpus_per_worker": num_gpus_per_worker,
            "num_cpus_per_worker": 1,
            "num_workers": num_ranks,
        },
    }
    (work / "entry.json").write_text(json.dumps(entry))
    (work / "requests.json").write_bytes(msgspec.json.encode(requests))
    files = [str(work / name) for name in ("address", "entry.json", "requests.json")]
    with ExitStack() as processes:
        ranks = [processes.enter_context(rank_process(rank, num_ranks, files, work)) for rank in range(num_ranks)]
        outputs = [rank.communicate(timeout=TIMEOUT_S)[0] for rank in ranks]
    lines = [[line for line in output.splitlines() if line.startswith("{")] for output in outputs]
    assert len(lines[0]) == 2, (work / "rank-0.log").read_text()
    loaded = [msgspec.json.decode(rank_lines[0], type=Loaded) for rank_lines in lines]
    answer = msgspec.json.decode(lines[0][1], type=Answer)
    return Group(
        shapes=[rank.shapes for rank in loaded],
        forwards=[rank.forward for rank in loaded],
        notes=[rank.note for rank in loaded],
        logits=torch.tensor(answer.logits),
        outputs=answer.outputs,
    )


@contextmanager
def rank_process(rank: int, num_ranks: int, files: list[str], work: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(rank)}  # as Ray does: each worker sees its own
    command = [sys.executable, "-m", "tests.support.tensor_parallel_rank", str(rank), str(num_ranks), *files]
    root = Path(__file__).parents[2]
    with (
        (work / f"rank-{rank}.log").open("w") as log,
        subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@torch.inference_mode()  # type: ignore[untyped-decorator]
def assert_equals_unsharded(group: Group, folder: Path, token_ids: list[list[int]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = model(torch.tensor(token_ids[:1])).logits[0, -1]
    assert float((group.logits - expected).abs().max()) < TOLERANCE
    for number, prompt in enumerate(token_ids):
        generated = list(group.outputs[str(number)].token_ids)
        logits = model(torch.tensor([prompt + generated])).logits[0, len(prompt) - 1 : -1]
        highest = logits.max(dim=-1).values
        chosen = logits.gather(1, torch.tensor(generated)[:, None])[:, 0]
        # The likeliest token each time; a tie within the tolerance may go either way.
        assert float((highest - chosen).max()) < TOLERANCE
        assert len(generated) == MAX_TOKENS
