"""The keys that SingleDevice, DeviceMap and DeepSpeed share: how a model is read from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_registry.schema import DeepSpeed, DeviceMap, RegistryEntry, SingleDevice
from workers.errors import LoadError
from workers.initializers.causal_lm import TransformersSettings, load_weights, prepare_process

TYPES = (SingleDevice, DeviceMap, DeepSpeed)


def entry(num_gpus: float = 0) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "tests/model", "initialization": {"initializer": {"type": "SingleDevice"}}},
            "scaling_config": {"num_gpus_per_worker": num_gpus},
        }
    )


@pytest.mark.parametrize("section", TYPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_type_that_is_asked_for(
    tiny_llama: Path, section: type[TransformersSettings], dtype: str
) -> None:
    settings = section.model_validate({"type": section.__name__, "dtype": dtype})
    assert load_weights(tiny_llama, settings).dtype is getattr(torch, dtype)


@pytest.mark.parametrize("section", TYPES)
def test_further_arguments_reach_from_pretrained(tiny_llama: Path, section: type[TransformersSettings]) -> None:
    kwargs = {"rms_norm_eps": 0.5}
    settings = section.model_validate({"type": section.__name__, "from_pretrained_kwargs": kwargs})
    assert load_weights(tiny_llama, settings).config.rms_norm_eps == 0.5


@pytest.mark.parametrize("section", TYPES)
def test_bettertransformer_is_answered_once_with_what_took_its_place(
    section: type[TransformersSettings], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        prepare_process(entry(), section.model_validate({"type": section.__name__}))
        assert "use_bettertransformer" not in caplog.text
        prepare_process(entry(), section.model_validate({"type": section.__name__, "use_bettertransformer": True}))
    assert caplog.text.count("use_bettertransformer") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(LoadError, match=r"num_gpus_per_worker is 0\.5, but torch sees no GPU"):
        prepare_process(entry(0.5), SingleDevice(type="SingleDevice"))
