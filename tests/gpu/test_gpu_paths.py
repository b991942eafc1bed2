"""What only a GPU can show: bfloat16, CUDA graphs, memory shares, several GPUs. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_registry.contract import GenerationRequest, SamplingParams, TokenPrompt
from model_registry.schema import RegistryEntry
from tests.support.tensor_parallel_group import assert_equals_unsharded, greedily, prompts, run_group
from workers.engine.engine import Engine
from workers.initializers import build_engine, initializer_for

MAX_TOKENS = 24
NEAR_TIE = 0.25
"""Two bfloat16 logits closer than this may change places when the batch changes the order of a sum."""

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    pytest.mark.timeout(600),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs on this machine")


@pytest.fixture(autouse=True)
def whole_gpu() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def entry_for(folder: Path, num_gpus: float = 1, **initializer: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "tests/model",
                "initialization": {
                    "hf_model_id": str(folder),
                    "initializer": {"type": "SingleDevice", "dtype": "bfloat16", **initializer},
                },
                "generation": {"max_batch_size": 8, "max_batch_tokens": 64, "kv_cache_tokens": 8192},
            },
            "scaling_config": {"num_gpus_per_worker": num_gpus},
        }
    )


def engine_for(folder: Path, num_gpus: float = 1, **initializer: Any) -> tuple[Engine, str]:
    entry = entry_for(folder, num_gpus, **initializer)
    loaded = initializer_for(entry).load(entry, lambda line: None)
    return build_engine(entry, loaded), loaded.note


def greedy(engine: Engine, token_ids: list[list[int]]) -> list[list[int]]:
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for number, prompt in enumerate(token_ids):
        request = GenerationRequest(request_id=str(number), prompt=TokenPrompt(tuple(prompt)), sampling=sampling)
        engine.submit(engine.prepare(request))
    generated: list[list[int]] = [[] for _ in token_ids]
    while engine.has_work:
        for output in engine.step():
            assert output.fault is None
            generated[int(output.request_id)] += output.token_ids
    return generated


@torch.inference_mode()  # type: ignore[untyped-decorator]
def assert_likeliest(folder: Path, token_ids: list[list[int]], generated: list[list[int]]) -> None:
    """Each token was the likeliest to the model's own bfloat16 forward, or nearly."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to("cuda").eval()
    for prompt, answer in zip(token_ids, generated, strict=True):
        logits = model(torch.tensor([prompt + answer], device="cuda")).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(answer, device="cuda")[:, None])[:, 0]
        assert float((logits.max(dim=-1).values - chosen).max()) < NEAR_TIE


def test_bfloat16_answers_what_the_models_own_forward_finds_likeliest(smollm2: Path) -> None:
    token_ids = prompts(49152)
    engine, _ = engine_for(smollm2)
    assert_likeliest(smollm2, token_ids, greedy(engine, token_ids))


@pytest.mark.parametrize("mode", [None, "reduce-overhead", "max-autotune"])
def test_compiled_steps_and_cuda_graphs_answer_the_same(smollm2: Path, mode: str | None) -> None:
    """Two of the modes replay CUDA graphs around the attention, which must not be frozen in them."""
    token_ids = prompts(49152)
    engine, note = engine_for(smollm2, torch_compile={"mode": mode})
    assert note == ""
    assert_likeliest(smollm2, token_ids, greedy(engine, token_ids))


def test_a_part_of_a_gpu_is_a_part_of_its_memory(smollm2: Path) -> None:
    engine_for(smollm2, num_gpus=0.25)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(torch.cuda.mem_get_info(0)[1] // 2, dtype=torch.uint8, device="cuda")


@two_gpus
def test_a_device_map_spreads_layers_and_their_kv_cache_over_two_gpus(smollm2: Path) -> None:
    token_ids = prompts(49152)
    entry = entry_for(smollm2, 2, type="DeviceMap", device_map="balanced")
    loaded = initializer_for(entry).load(entry, lambda line: None)
    runner: Any = loaded.runner
    assert {str(layout.device) for layout in runner._layouts} == {"cuda:0", "cuda:1"}
    assert_likeliest(smollm2, token_ids, greedy(build_engine(entry, loaded), token_ids))


@two_gpus
def test_two_ranks_over_nccl_equal_the_unsharded_model(smollm2: Path, tmp_path: Path) -> None:
    token_ids = prompts(49152)
    group = run_group(smollm2, 2, tmp_path, greedily(token_ids), num_gpus_per_worker=1)
    assert_equals_unsharded(group, smollm2, token_ids)
