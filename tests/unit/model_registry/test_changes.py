"""What a changed file means for a model that runs."""

from __future__ import annotations

from typing import Any

import pytest

from model_registry.changes import SETTINGS, SIZES, Change, change_between
from model_registry.schema import RegistryEntry


def entry(**sections: dict[str, Any]) -> RegistryEntry:
    model = {"model_id": "a/b", "initialization": {"initializer": {"type": "SingleDevice", "dtype": "float32"}}}
    return RegistryEntry.model_validate({**sections, "model_config": {**model, **sections.get("model_config", {})}})


def test_the_same_file_changes_nothing() -> None:
    assert change_between(entry(), entry()) is Change.NONE


@pytest.mark.parametrize(
    "sections",
    [
        {"deployment_config": {"autoscaling_config": {"max_replicas": 3}}},
        {"deployment_config": {"max_ongoing_requests": 9}},
        {"deployment_config": {"max_queued_requests": 9}},
        {"model_config": {"model_description": "Small."}},
        {"model_config": {"max_input_words": 9}},
        {"model_config": {"generation": {"max_input_words": 9}}},
        {"model_config": {"generation": {"max_input_tokens": 9}}},
        {"model_config": {"generation": {"generate_kwargs": {"temperature": 0.1}}}},
        {"model_config": {"generation": {"prompt_format": "Q: {instruction}"}}},
        {"model_config": {"generation": {"stopping_sequences": ["Q:"]}}},
        {"model_config": {"generation": {"tool_format": "llama"}}},
        {"model_config": {"generation": {"reasoning_format": "think"}}},
        {"scaling_config": {"pg_timeout_s": 9}},
    ],
)
def test_settings_take_effect_without_new_replicas(sections: dict[str, Any]) -> None:
    assert change_between(entry(), entry(**sections)) is Change.SETTINGS


def test_every_setting_has_its_case_above() -> None:
    (cases,) = (mark.args[1] for mark in test_settings_take_effect_without_new_replicas.pytestmark)
    assert len(cases) == len(SETTINGS)


@pytest.mark.parametrize("size", ["max_batch_size", "max_batch_tokens", "max_model_len", "kv_cache_tokens"])
def test_sizes_are_changed_around_the_loaded_weights_also_beside_a_setting(size: str) -> None:
    assert change_between(entry(), entry(model_config={"generation": {size: 64}})) is Change.SIZES
    both = {"generation": {size: 64, "stopping_sequences": ["Q:"]}}
    assert change_between(entry(), entry(model_config=both)) is Change.SIZES
    assert f"model.generation.{size}" in SIZES


@pytest.mark.parametrize(
    "initializer",
    [
        {"type": "SingleDevice", "dtype": "float32", "torch_compile": {"backend": "inductor"}},
        {"type": "DeviceMap", "dtype": "float32", "torch_compile": {"backend": "inductor"}},
        {"type": "DeepSpeed", "dtype": "float32"},
    ],
)
def test_compiled_steps_and_groups_of_ranks_are_made_anew_for_other_sizes(initializer: dict[str, Any]) -> None:
    model = {"initialization": {"initializer": initializer}}
    old, new = entry(model_config=model), entry(model_config={**model, "generation": {"max_batch_size": 2}})
    assert change_between(old, new) is Change.REPLICAS


@pytest.mark.parametrize(
    "sections",
    [
        {"model_config": {"initialization": {"initializer": {"type": "SingleDevice", "dtype": "bfloat16"}}}},
        {"scaling_config": {"num_cpus_per_worker": 2}},
        {"deployment_config": {"ray_actor_options": {"memory": 1.0}}},
    ],
)
def test_what_is_loaded_or_reserved_needs_new_replicas_also_beside_a_setting(sections: dict[str, Any]) -> None:
    assert change_between(entry(), entry(**sections)) is Change.REPLICAS
    both = {**sections, "deployment_config": {**sections.get("deployment_config", {}), "max_queued_requests": 9}}
    assert change_between(entry(), entry(**both)) is Change.REPLICAS
    model = {**sections.get("model_config", {}), "generation": {"max_batch_size": 2}}
    assert change_between(entry(), entry(**{**sections, "model_config": model})) is Change.REPLICAS
