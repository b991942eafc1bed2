"""DeviceMap on a machine without GPUs: layers computed on the CPU, their weights there or on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_registry.schema import RegistryEntry
from workers.engine.runner import Chunk, StepPlan
from workers.errors import LoadError
from workers.initializers import initializer_for
from workers.initializers.base import LoadedModel
from workers.runners.transformers import EagerForward, TransformersRunner, measure_layers

TOKEN_IDS = [(5 + 37 * place) % 320 for place in range(40)]
SPLIT = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "disk",
    "lm_head": "cpu",
}


@pytest.fixture(autouse=True)
def offload_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_CACHE_DIR", str(tmp_path))


def load(folder: Path, **initializer: Any) -> LoadedModel:
    entry = RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "tests/model",
                "initialization": {
                    "hf_model_id": str(folder),
                    "initializer": {"type": "DeviceMap", "dtype": "float32", **initializer},
                },
                "generation": {"max_batch_size": 8, "kv_cache_tokens": 2048},
            },
            "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 1},
        }
    )
    return initializer_for(entry).load(entry, lambda line: None)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def expected_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits: torch.Tensor = model(torch.tensor([TOKEN_IDS])).logits[0, -1]
    return logits


def logits_in_two_steps(runner: Any) -> torch.Tensor:
    """A prefill and a decode."""
    blocks = [4, 1, 7]
    runner.run(StepPlan([Chunk(TOKEN_IDS[:-1], 0, blocks, num_logits=0)]))
    logits: torch.Tensor = runner.run(StepPlan([Chunk(TOKEN_IDS[-1:], 39, blocks, num_logits=1)]))[0]
    return logits


def model_of(loaded: LoadedModel) -> Any:
    runner: Any = loaded.runner
    return runner._forward._model


def test_a_model_split_between_memory_and_disk_equals_the_whole_one(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, device_map=SPLIT)
    model = model_of(loaded)
    assert model.hf_device_map == SPLIT
    # What is on disk has no storage in memory between steps.
    assert model.model.layers[1].self_attn.q_proj.weight.device.type == "meta"
    torch.testing.assert_close(logits_in_two_steps(loaded.runner), expected_logits(tiny_llama), atol=1e-4, rtol=0)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "cpu"])
def test_each_named_map_loads_and_answers(tiny_llama: Path, device_map: str) -> None:
    loaded = load(tiny_llama, device_map=device_map)
    torch.testing.assert_close(logits_in_two_steps(loaded.runner), expected_logits(tiny_llama), atol=1e-4, rtol=0)


def test_max_memory_sends_the_rest_to_disk(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, device_map="auto", max_memory={"cpu": "300KB"})
    assert {"cpu", "disk"} == {str(device) for device in model_of(loaded).hf_device_map.values()}
    torch.testing.assert_close(logits_in_two_steps(loaded.runner), expected_logits(tiny_llama), atol=1e-4, rtol=0)


def test_layers_on_two_devices_each_have_their_own_indices(tiny_llama: Path) -> None:
    """`cpu` and `cpu:0` are two devices to a layout, and one to the processor."""
    model = model_of(load(tiny_llama, device_map="cpu"))
    first, second = measure_layers(model)
    spread = [first, replace(second, device=torch.device("cpu", 0))]
    forward = EagerForward(model, first.device)
    runner = TransformersRunner(forward, spread, num_kv_blocks=16, max_model_len=256)
    assert len(runner._layouts) == 2
    torch.testing.assert_close(logits_in_two_steps(runner), expected_logits(tiny_llama), atol=1e-4, rtol=0)


def test_a_map_that_forgets_a_module_is_refused_by_its_name(tiny_llama: Path) -> None:
    with pytest.raises(LoadError, match="lm_head"):
        load(tiny_llama, device_map={name: device for name, device in SPLIT.items() if name != "lm_head"})


def test_an_unknown_name_is_refused_with_the_known_ones(tiny_llama: Path) -> None:
    with pytest.raises(LoadError, match="balanced_low_0"):
        load(tiny_llama, device_map="evenly")
