"""What this version does not execute is refused by name, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from model_registry.loader import ZOO, load_entry
from model_registry.schema import RegistryEntry
from model_registry.support import unsupported_keys


def refused_keys(
    *,
    initialization: dict[str, Any] | None = None,
    deployment: dict[str, Any] | None = None,
    scaling: dict[str, Any] | None = None,
) -> list[str]:
    initialization = {"initializer": {"type": "SingleDevice"}, **(initialization or {})}
    entry = RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "a/b", "initialization": initialization},
            "deployment_config": deployment or {},
            "scaling_config": scaling or {},
        }
    )
    return [line.partition(": ")[0] for line in unsupported_keys(entry)]


@pytest.mark.parametrize(
    "file",
    [
        "aviary--echo.yaml",
        "HuggingFaceTB--SmolLM2-135M-Instruct.yaml",
        "HuggingFaceTB--SmolLM2-135M-Instruct-GGUF.yaml",
    ],
)
def test_the_models_that_run_out_of_the_box_ask_for_nothing_unsupported(file: str) -> None:
    assert unsupported_keys(load_entry(ZOO / file)) == []


def test_everything_the_full_example_asks_for_too_early_is_named() -> None:
    lines = unsupported_keys(load_entry(ZOO / "mosaicml--mpt-7b-instruct.yaml"))
    assert [line.partition(": ")[0].rpartition(".")[2] for line in lines] == [
        "max_replicas",
        "target_ongoing_requests",
        "metrics_interval_s",
        "look_back_period_s",
        "smoothing_factor",
        "upscale_delay_s",
        "downscale_delay_s",
        "runtime_env",
        "s3_mirror_config",
        "torch_compile",
    ]
    assert all(": " in line and "; " in line for line in lines), "each line gives a reason and a next step"


@pytest.mark.parametrize(
    "initializer",
    [
        {"type": "SingleDevice", "dtype": "float32"},
        {"type": "SingleDevice", "from_pretrained_kwargs": {"trust_remote_code": True}},
        {"type": "SingleDevice", "use_bettertransformer": True},
        {"type": "LlamaCpp", "model_filename": "x.gguf", "model_init_kwargs": {"n_ctx": 512}},
        {"type": "Echo", "step_time_s": 0.1},
    ],
)
def test_executed_initializers_pass_with_all_they_execute(initializer: dict[str, Any]) -> None:
    assert refused_keys(initialization={"initializer": initializer}) == []


@pytest.mark.parametrize("initializer", [{"type": "DeviceMap"}, {"type": "DeepSpeed"}])
def test_other_initializers_are_refused(initializer: dict[str, Any]) -> None:
    assert refused_keys(initialization={"initializer": initializer}) == ["model_config.initialization.initializer.type"]


@pytest.mark.parametrize(
    ("initialization", "key"),
    [
        ({"initializer": {"type": "SingleDevice", "torch_compile": {}}}, "initializer.torch_compile"),
        ({"runtime_env": {"pip": ["x"]}}, "runtime_env"),
        ({"s3_mirror_config": {"bucket_uri": "s3://bucket/x/"}}, "s3_mirror_config"),
    ],
)
def test_unexecuted_initialization_keys_are_refused(initialization: dict[str, Any], key: str) -> None:
    assert refused_keys(initialization=initialization) == [f"model_config.initialization.{key}"]


@pytest.mark.parametrize(
    "autoscaling",
    [
        {},
        {"initial_replicas": 1},
        {"min_replicas": 3, "max_replicas": 3},
        {"min_replicas": 2, "initial_replicas": 2, "max_replicas": 2},
    ],
)
def test_a_fixed_number_of_replicas_is_executed(autoscaling: dict[str, int]) -> None:
    assert refused_keys(deployment={"autoscaling_config": autoscaling}) == []


@pytest.mark.parametrize(
    "autoscaling",
    [{"max_replicas": 2}, {"min_replicas": 0}, {"min_replicas": 1, "initial_replicas": 2, "max_replicas": 2}],
)
def test_a_range_of_replicas_is_refused(autoscaling: dict[str, int]) -> None:
    assert refused_keys(deployment={"autoscaling_config": autoscaling}) == [
        "deployment_config.autoscaling_config.max_replicas"
    ]


@pytest.mark.parametrize(
    "key",
    [
        "target_ongoing_requests",
        "target_num_ongoing_requests_per_replica",
        "metrics_interval_s",
        "look_back_period_s",
        "smoothing_factor",
        "upscaling_factor",
        "downscaling_factor",
        "upscale_delay_s",
        "downscale_delay_s",
        "downscale_to_zero_delay_s",
    ],
)
def test_a_key_that_only_autoscaling_reads_is_refused_even_at_its_default(key: str) -> None:
    (refused,) = refused_keys(deployment={"autoscaling_config": {key: 30.0}})
    assert refused.startswith("deployment_config.autoscaling_config.")


def test_actor_options_are_executed_except_for_two() -> None:
    executed = {"num_cpus": 1, "num_gpus": 0, "memory": 1e9, "resources": {"x": 0.01}}
    assert refused_keys(deployment={"ray_actor_options": executed}) == []
    assert refused_keys(deployment={"ray_actor_options": {"accelerator_type": "H100", "runtime_env": {}}}) == [
        "deployment_config.ray_actor_options.accelerator_type",
        "deployment_config.ray_actor_options.runtime_env",
    ]


def test_more_than_one_worker_per_replica_is_refused() -> None:
    assert refused_keys(scaling={"num_workers": 2}) == ["scaling_config.num_workers"]
    assert refused_keys(scaling={"num_workers": 1, "placement_strategy": "SPREAD"}) == []


PACKAGE = {"distribution": "x", "version": "1", "file": "x.gguf", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("initialization", "keys"),
    [
        ({"initializer": {"type": "Echo"}, "hf_model_id": "a/b"}, ["hf_model_id"]),
        ({"initializer": {"type": "Echo"}, "python_package": PACKAGE}, ["python_package"]),
        ({"hf_model_id": "a/b", "python_package": PACKAGE}, ["hf_model_id"]),
        ({"hf_model_id": "a/b"}, []),
        ({"python_package": PACKAGE}, []),
    ],
)
def test_sources_that_contradict_each_other_or_the_initializer_are_refused(
    initialization: dict[str, Any], keys: list[str]
) -> None:
    assert refused_keys(initialization=initialization) == [f"model_config.initialization.{key}" for key in keys]


@pytest.mark.parametrize(
    ("name", "folder", "is_refused"),
    [
        ("attn_implementation", None, True),
        ("quantization_config", None, True),
        ("cache_dir", None, True),
        ("revision", None, False),
        ("revision", "/models/b", True),
    ],
)
def test_loader_arguments_that_the_worker_would_refuse_are_refused_here(
    name: str, folder: str | None, is_refused: bool
) -> None:
    initializer = {"type": "SingleDevice", "from_pretrained_kwargs": {name: "x"}}
    keys = refused_keys(initialization={"initializer": initializer, "hf_model_id": folder})
    expected = f"model_config.initialization.initializer.from_pretrained_kwargs.{name}"
    assert keys == ([expected] if is_refused else [])
