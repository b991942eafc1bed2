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
    embedding: dict[str, Any] | None = None,
) -> list[str]:
    initialization = {"initializer": {"type": "SingleDevice"}, **(initialization or {})}
    entry = RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "a/b", "initialization": initialization, "embedding": embedding or {}},
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
        "hugginllam--gemma-3-270m-Q4_K_M-GGUF.yaml",
    ],
)
def test_the_models_that_run_out_of_the_box_ask_for_nothing_unsupported(file: str) -> None:
    assert unsupported_keys(load_entry(ZOO / file)) == []


def test_everything_the_full_example_asks_for_is_executed() -> None:
    assert unsupported_keys(load_entry(ZOO / "mosaicml--mpt-7b-instruct.yaml")) == []


@pytest.mark.parametrize(
    "initializer",
    [
        {"type": "SingleDevice", "dtype": "float32"},
        {"type": "SingleDevice", "from_pretrained_kwargs": {"trust_remote_code": True}},
        {"type": "SingleDevice", "use_bettertransformer": True},
        {"type": "SingleDevice", "torch_compile": {"backend": "inductor", "mode": "max-autotune"}},
        {"type": "DeviceMap", "device_map": {"": "cpu"}, "max_memory": {0: "20GiB"}},
        {"type": "DeepSpeed", "use_kernel": True, "use_meta_tensor": True, "max_tokens": 512, "group_timeout_s": 5},
        {"type": "LlamaCpp", "model_filename": "x.gguf", "model_init_kwargs": {"n_ctx": 512}},
        {"type": "Echo", "step_time_s": 0.1},
    ],
)
def test_executed_initializers_pass_with_all_they_execute(initializer: dict[str, Any]) -> None:
    assert refused_keys(initialization={"initializer": initializer}) == []


@pytest.mark.parametrize(
    "autoscaling",
    [
        {},
        {"min_replicas": 3, "max_replicas": 3, "upscale_delay_s": 5},
        {"min_replicas": 0, "max_replicas": 20, "look_back_period_s": 60, "downscale_to_zero_delay_s": 900},
        {"max_replicas": 2, "target_num_ongoing_requests_per_replica": 4, "smoothing_factor": 0.5},
    ],
)
def test_a_fixed_number_of_replicas_is_executed_and_so_is_one_that_follows_the_load(
    autoscaling: dict[str, float],
) -> None:
    assert refused_keys(deployment={"autoscaling_config": autoscaling}) == []


def test_actor_options_and_environments_are_executed() -> None:
    options = {"num_cpus": 1, "num_gpus": 0, "memory": 1e9, "resources": {"x": 0.01}, "accelerator_type": "H100"}
    runtime_env = {"pip": ["x"], "env_vars": {"A": "b"}, "working_dir": "/code"}
    assert refused_keys(deployment={"ray_actor_options": {**options, "runtime_env": runtime_env}}) == []
    assert refused_keys(initialization={"runtime_env": runtime_env}) == []


def test_several_workers_of_a_deepspeed_replica_are_executed() -> None:
    initialization = {"initializer": {"type": "DeepSpeed"}}
    assert refused_keys(initialization=initialization, scaling={"num_workers": 2, "num_gpus_per_worker": 1}) == []


@pytest.mark.parametrize(
    ("type_", "embedding", "keys"),
    [
        ("Echo", {"pooling": "mean"}, ["model_config.embedding.pooling"]),
        ("Echo", {"normalize": False, "dimensions": True}, []),
        ("DeepSpeed", {"normalize": False}, ["model_config.embedding"]),
        ("DeepSpeed", {}, []),
        ("SingleDevice", {"pooling": "cls", "normalize": False, "dimensions": True}, []),
    ],
)
def test_how_embeddings_are_made_is_refused_where_none_are(
    type_: str, embedding: dict[str, Any], keys: list[str]
) -> None:
    assert refused_keys(initialization={"initializer": {"type": type_}}, embedding=embedding) == keys


S3 = {"bucket_uri": "s3://bucket/m/"}
GCS = {"bucket_uri": "gs://bucket/m/"}
PACKAGE = {"distribution": "x", "version": "1", "file": "x.gguf", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("initialization", "keys"),
    [
        ({"initializer": {"type": "Echo"}, "hf_model_id": "a/b"}, ["hf_model_id"]),
        ({"initializer": {"type": "Echo"}, "python_package": PACKAGE}, ["python_package"]),
        ({"hf_model_id": "a/b", "python_package": PACKAGE}, ["hf_model_id"]),
        ({"initializer": {"type": "Echo"}, "s3_mirror_config": S3}, ["s3_mirror_config"]),
        ({"initializer": {"type": "Echo"}, "gcs_mirror_config": GCS}, ["gcs_mirror_config"]),
        ({"hf_model_id": "a/b"}, []),
        ({"python_package": PACKAGE}, []),
        ({"s3_mirror_config": S3}, []),
        ({"s3_mirror_config": S3, "hf_model_id": "a/b"}, []),
        ({"gcs_mirror_config": GCS}, []),
    ],
)
def test_sources_that_contradict_each_other_or_the_initializer_are_refused(
    initialization: dict[str, Any], keys: list[str]
) -> None:
    assert refused_keys(initialization=initialization) == [f"model_config.initialization.{key}" for key in keys]


@pytest.mark.parametrize(
    ("name", "source", "is_refused"),
    [
        ("attn_implementation", {}, True),
        ("quantization_config", {}, True),
        ("cache_dir", {}, True),
        ("revision", {}, False),
        ("revision", {"hf_model_id": "c/d"}, False),
        ("revision", {"hf_model_id": "/models/b"}, True),
        ("revision", {"s3_mirror_config": S3, "hf_model_id": "c/d"}, True),
        ("revision", {"gcs_mirror_config": GCS}, True),
    ],
)
def test_loader_arguments_that_the_worker_would_refuse_are_refused_here(
    name: str, source: dict[str, Any], is_refused: bool
) -> None:
    initializer = {"type": "SingleDevice", "from_pretrained_kwargs": {name: "x"}}
    keys = refused_keys(initialization={"initializer": initializer, **source})
    expected = f"model_config.initialization.initializer.from_pretrained_kwargs.{name}"
    assert keys == ([expected] if is_refused else [])
