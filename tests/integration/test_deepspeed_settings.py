"""What the registry says of DeepSpeed reaches `init_inference`, or is refused by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model_registry.schema import DeepSpeed, Generation, TorchCompile
from workers.errors import LoadError
from workers.initializers import deepspeed as initializer

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def library() -> Any:
    return initializer._import_deepspeed(torch.device("cpu"))


def arguments(library: Any, **settings: Any) -> dict[str, Any]:
    return initializer._inference_arguments(library, DeepSpeed(type="DeepSpeed", **settings), 2)


def test_dtype_and_the_number_of_ranks_are_the_registrys(library: Any) -> None:
    given = arguments(library, dtype="bfloat16")
    assert given["dtype"] is torch.bfloat16
    assert given["tensor_parallel"] == {"tp_size": 2, "tp_grain_size": 1}
    assert given["replace_with_kernel_inject"] is False


def test_further_arguments_are_passed_on(library: Any) -> None:
    assert arguments(library, ds_inference_kwargs={"triangular_masking": False})["triangular_masking"] is False


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mp_size": 4}, "mp_size cannot be set here; scaling_config.num_workers decides it"),
        ({"dtype": "fp16"}, "dtype cannot be set here; initializer.dtype decides it"),
        ({"max_out_tokens": 9}, "max_out_tokens cannot be set here; initializer.max_tokens decides it"),
        ({"tensor_paralel": {}}, "tensor_paralel is not an argument of deepspeed.init_inference"),
        ({"moe": "many"}, "moe"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_by_its_key(library: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=rf"initializer\.ds_inference_kwargs\.{message}"):
        arguments(library, ds_inference_kwargs=kwargs)


def test_the_shared_memory_all_reduce_is_off(library: Any) -> None:
    assert library.ops.__compatible_ops__["deepspeed_shm_comm"] is False


@pytest.mark.parametrize(("max_model_len", "limit"), [(None, 64), (32, 32), (128, 64)])
def test_max_tokens_bounds_the_context(max_model_len: int | None, limit: int) -> None:
    assert initializer._limited(Generation(max_model_len=max_model_len), 64).max_model_len == limit


def test_an_empty_model_takes_what_its_config_knows_and_refuses_the_rest(tiny_llama: Path) -> None:
    known = DeepSpeed(type="DeepSpeed", dtype="float32", from_pretrained_kwargs={"rms_norm_eps": 0.5})
    model = initializer._empty_model(tiny_llama, known)
    assert model.config.rms_norm_eps == 0.5
    assert model.lm_head.weight.is_meta
    assert not model.model.rotary_emb.inv_freq.is_meta
    unknown = DeepSpeed(type="DeepSpeed", dtype="float32", from_pretrained_kwargs={"low_cpu_mem_usage": True})
    with pytest.raises(LoadError, match=r"from_pretrained_kwargs\.low_cpu_mem_usage"):
        initializer._empty_model(tiny_llama, unknown)


def test_use_kernel_asks_for_the_compilers_kernels_unless_the_file_says_which() -> None:
    assert initializer._compiler(DeepSpeed(type="DeepSpeed")) is None
    assert initializer._compiler(DeepSpeed(type="DeepSpeed", use_kernel=True)) == TorchCompile()
    own = TorchCompile(mode="max-autotune")
    assert initializer._compiler(DeepSpeed(type="DeepSpeed", use_kernel=True, torch_compile=own)) is own
