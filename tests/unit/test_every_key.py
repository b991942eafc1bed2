"""Every key of a registry file has a test that fails when the key is ignored. This table says which.

A key that the schema gains fails here until it has a row; a row whose test is renamed or gone fails too. What a test
proves is for its reader to judge: it must set the key to something other than its default, and see the difference.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from model_registry.keys import sections_in, type_of, yaml_names
from model_registry.schema import RegistryEntry, Section

ROOT: Final = Path(__file__).parents[2]

_SCALED = "tests/unit/workers/test_pool_autoscaling.py"
_AUTOSCALING_TESTS: Final[Mapping[str, str]] = {
    "min_replicas": f"{_SCALED}::test_the_number_stays_within_its_bounds",
    "initial_replicas": "tests/unit/model_registry/test_schema.py"
    "::test_replicas_to_start_with_are_the_initial_ones_or_the_fewest",
    "max_replicas": f"{_SCALED}::test_the_number_stays_within_its_bounds",
    "target_ongoing_requests": f"{_SCALED}::test_another_target_asks_for_another_number",
    "target_ongoing_tokens": f"{_SCALED}::test_tokens_of_all_gateways_may_take_the_place_of_requests",
    "target_kv_cache_usage": f"{_SCALED}::test_the_share_of_the_kv_cache_in_use_is_the_mean_over_replicas",
    "metrics_interval_s": "tests/unit/gateway/test_load.py"
    "::test_the_load_is_looked_at_five_times_per_look_back_period_and_at_each_report",
    "look_back_period_s": "tests/unit/gateway/test_load.py::test_a_longer_look_back_period_reports_more",
    "smoothing_factor": f"{_SCALED}::test_a_smoothing_factor_goes_a_part_of_the_way_up_and_down",
    "upscaling_factor": f"{_SCALED}::test_the_factors_of_each_direction_come_before_the_common_one",
    "downscaling_factor": f"{_SCALED}::test_the_factors_of_each_direction_come_before_the_common_one",
    "upscale_delay_s": f"{_SCALED}::test_more_are_wanted_for_the_upscale_delay_before_they_come",
    "downscale_delay_s": f"{_SCALED}::test_fewer_are_wanted_for_the_downscale_delay_before_they_go",
    "downscale_to_zero_delay_s": f"{_SCALED}::test_the_last_replica_may_have_a_delay_of_its_own",
}
_ONE_BUNDLE = (
    "tests/unit/workers/test_pool_placement.py::test_one_worker_is_one_bundle_with_everything_the_file_asks_for"
)
_MORE_BUNDLES = "tests/unit/workers/test_pool_placement.py::test_each_further_worker_has_a_bundle_of_its_own"
_ENVIRONMENT = (
    "tests/unit/workers/test_pool_process_environment.py::test_each_key_of_either_environment_reaches_its_processes"
)
_INSTALLED = (
    "tests/e2e/test_runtime_env.py::test_packages_are_there_for_the_worker_or_the_model_says_which_cannot_be_had"
)
_IN_PROCESS = "tests/integration/test_runtime_env.py::test_variables_folder_and_accelerator_reach_the_worker"
_PACKAGE = "tests/unit/workers/test_sources_package.py"
_SAMPLING = "tests/unit/gateway/test_sampling.py"
_DEFAULTS = f"{_SAMPLING}::test_the_registrys_defaults_hold_where_the_request_says_nothing"
_SIZED = "tests/unit/workers/test_initializers_base.py::test_the_engine_is_sized_by_the_registry"
_ANSWERS = "tests/unit/gateway/test_answer_format.py"
_PER_ROLE = "tests/unit/gateway/test_prompts.py::test_an_object_format_has_a_template_per_role"
_WORDS = "tests/integration/test_gateway_openai_client.py::test_a_prompt_of_too_many_words_is_refused_before_it_waits"

_TYPE = "tests/unit/workers/test_initializers_base.py::test_the_type_chooses_the_initializer"
_LOADED = "tests/integration/test_transformers_settings.py"
_COMPILED = "tests/integration/test_torch_compile.py"
_DEVICE_MAP = "tests/integration/test_device_map.py"
_DEEPSPEED = "tests/integration/test_deepspeed_settings.py"
_EMBEDDINGS = "tests/integration/test_embeddings.py"
_S3 = "tests/integration/test_s3_source.py"
_GCS = "tests/integration/test_gcs_source.py"
_S3_TESTS: Final[Mapping[str, str]] = {
    "bucket_uri": "test_a_model_is_fetched_whole_with_progress_and_counted",
    "s3_sync_args": "test_excludes_and_includes_are_those_of_aws_the_last_one_decides",
    "endpoint_url": "test_the_endpoint_may_come_from_the_arguments_or_the_environment",
    "s3_aws_credentials.create_aws_credentials_url": "test_temporary_credentials_are_asked_for_with_the_token",
    "s3_aws_credentials.auth_token_env_variable": "test_temporary_credentials_are_asked_for_with_the_token",
    "extra_files.bucket_uri": "test_extra_files_go_where_they_are_told",
    "extra_files.destination_path": "test_extra_files_go_where_they_are_told",
}
_GCS_TESTS: Final[Mapping[str, str]] = {
    "bucket_uri": "test_a_model_is_fetched_whole_in_ranges_of_one_generation",
    "extra_files.bucket_uri": "test_extra_files_and_a_single_gguf",
    "extra_files.destination_path": "test_extra_files_and_a_single_gguf",
}
_SHARED: Final[Mapping[str, str]] = {
    "type": _TYPE,
    "dtype": f"{_LOADED}::test_weights_have_the_type_that_is_asked_for",
    "from_pretrained_kwargs": f"{_LOADED}::test_further_arguments_reach_from_pretrained",
    "use_bettertransformer": f"{_LOADED}::test_bettertransformer_is_answered_once_with_what_took_its_place",
    "torch_compile.backend": f"{_COMPILED}::test_an_unknown_backend_is_refused_with_the_known_ones",
    "torch_compile.mode": f"{_COMPILED}::test_mode_and_options_reach_the_compiler",
    "torch_compile.fullgraph": f"{_COMPILED}::test_mode_and_options_reach_the_compiler",
    "torch_compile.options": f"{_COMPILED}::test_mode_and_options_reach_the_compiler",
    "torch_compile.dynamic": f"{_COMPILED}::test_dynamic_shapes_need_a_graph_for_one_token_and_one_for_all_other_sizes",
}
"""Keys of the three Transformers initializers."""

PROVEN_BY: Final[Mapping[str, str]] = {
    "extends": "tests/unit/model_registry/test_loader.py::TestExtends"
    "::test_the_chat_variant_is_the_instruct_variant_with_four_values_changed",
    "enabled": "tests/unit/model_registry/test_loader.py::TestGoodFolders"
    "::test_a_disabled_entry_is_validated_but_left_out",
    "deployment_config.max_ongoing_requests": "tests/unit/gateway/test_dispatch.py"
    "::test_no_worker_gets_more_than_its_limit_and_the_next_goes_when_one_ends",
    "deployment_config.max_queued_requests": "tests/unit/gateway/test_dispatch.py"
    "::test_a_full_queue_refuses_and_says_when_to_come_back",
    "deployment_config.ray_actor_options.num_cpus": _ONE_BUNDLE,
    "deployment_config.ray_actor_options.num_gpus": _MORE_BUNDLES,
    "deployment_config.ray_actor_options.memory": _ONE_BUNDLE,
    "deployment_config.ray_actor_options.resources": _ONE_BUNDLE,
    "deployment_config.ray_actor_options.accelerator_type": "tests/unit/workers/test_pool_placement.py"
    "::test_an_accelerator_is_asked_for_as_ray_does_and_for_the_front_only",
    "deployment_config.ray_actor_options.runtime_env.pip": _ENVIRONMENT,
    "deployment_config.ray_actor_options.runtime_env.uv": _ENVIRONMENT,
    "deployment_config.ray_actor_options.runtime_env.env_vars": _IN_PROCESS,
    "deployment_config.ray_actor_options.runtime_env.working_dir": _ENVIRONMENT,
    "model_config.model_id": "tests/unit/workers/test_sources_fetch_model.py"
    "::test_the_hub_gets_the_id_and_the_arguments",
    "model_config.model_description": "tests/integration/test_gateway_openai_client.py"
    "::test_a_model_is_described_in_the_registrys_words",
    "model_config.max_input_words": _WORDS,
    "model_config.initialization.hf_model_id": "tests/unit/workers/test_sources_fetch_model.py"
    "::test_the_keys_given_choose_the_source",
    "model_config.initialization.runtime_env.pip": _INSTALLED,
    "model_config.initialization.runtime_env.uv": _INSTALLED,
    "model_config.initialization.runtime_env.env_vars": _IN_PROCESS,
    "model_config.initialization.runtime_env.working_dir": _IN_PROCESS,
    "model_config.initialization.python_package.distribution": f"{_PACKAGE}"
    "::test_the_file_is_taken_from_the_wheel_once",
    "model_config.initialization.python_package.version": f"{_PACKAGE}::test_another_installed_version_is_not_used",
    "model_config.initialization.python_package.file": f"{_PACKAGE}::test_a_wheel_without_the_file_is_named",
    "model_config.initialization.python_package.sha256": f"{_PACKAGE}"
    "::test_a_wrong_checksum_names_both_and_leaves_no_file",
    "model_config.initialization.python_package.parts.distribution": f"{_PACKAGE}"
    "::test_a_part_that_is_not_in_its_wheel_is_named_and_nothing_stays",
    "model_config.initialization.python_package.parts.version": f"{_PACKAGE}"
    "::test_installed_parts_are_read_where_they_are_and_the_others_fetched",
    "model_config.initialization.python_package.parts.file": f"{_PACKAGE}"
    "::test_a_file_in_parts_is_joined_from_their_wheels_once",
    "model_config.initialization.initializer[Echo].type": "tests/unit/workers/test_initializers_base.py"
    "::test_the_type_chooses_the_initializer",
    "model_config.initialization.initializer[Echo].step_time_s": "tests/unit/workers/test_initializers_echo.py"
    "::test_loading_and_steps_take_as_long_as_the_registry_says",
    "model_config.initialization.initializer[Echo].load_time_s": "tests/unit/workers/test_initializers_echo.py"
    "::test_loading_and_steps_take_as_long_as_the_registry_says",
    "model_config.initialization.pipeline": "tests/unit/model_registry/test_schema.py"
    "::test_the_pipeline_must_fit_the_initializer",
    "model_config.generation.max_batch_size": _SIZED,
    "model_config.generation.max_batch_tokens": _SIZED,
    "model_config.generation.max_model_len": _SIZED,
    "model_config.generation.max_input_tokens": "tests/integration/test_system.py"
    "::test_a_prompt_of_more_tokens_than_the_registry_allows_is_refused_by_the_workers_count",
    "model_config.generation.max_input_words": _WORDS,
    "model_config.generation.kv_cache_tokens": _SIZED,
    "model_config.generation.generate_kwargs.do_sample": f"{_SAMPLING}"
    "::test_no_sampling_in_the_registry_is_greedy_until_a_request_wants_otherwise",
    "model_config.generation.generate_kwargs.max_new_tokens": _DEFAULTS,
    "model_config.generation.generate_kwargs.min_new_tokens": _DEFAULTS,
    "model_config.generation.generate_kwargs.temperature": _DEFAULTS,
    "model_config.generation.generate_kwargs.top_p": _DEFAULTS,
    "model_config.generation.generate_kwargs.top_k": _DEFAULTS,
    "model_config.generation.generate_kwargs.repetition_penalty": _DEFAULTS,
    "model_config.generation.prompt_format": "tests/unit/gateway/test_prompts.py::test_a_string_format_wraps_each_turn",
    "model_config.generation.prompt_format.system": _PER_ROLE,
    "model_config.generation.prompt_format.user": _PER_ROLE,
    "model_config.generation.prompt_format.assistant": _PER_ROLE,
    "model_config.generation.prompt_format.trailing_assistant": _PER_ROLE,
    "model_config.generation.prompt_format.default_system_message": _PER_ROLE,
    "model_config.generation.prompt_format.system_in_user": _PER_ROLE,
    "model_config.generation.prompt_format.add_system_tags_even_if_message_is_empty": _PER_ROLE,
    "model_config.generation.prompt_format.strip_whitespace": _PER_ROLE,
    "model_config.generation.tool_format": f"{_ANSWERS}::test_the_registry_decides_before_the_template",
    "model_config.generation.reasoning_format": f"{_ANSWERS}::test_the_registry_decides_before_the_template",
    "model_config.generation.stopping_sequences": f"{_SAMPLING}::test_stops_add_up_and_keep_their_kind",
    "model_config.embedding.pooling": f"{_EMBEDDINGS}::test_vectors_are_the_models_own_hidden_states_pooled",
    "model_config.embedding.normalize": f"{_EMBEDDINGS}::test_vectors_keep_their_length_where_the_registry_says_so",
    "model_config.embedding.dimensions": f"{_EMBEDDINGS}::test_fewer_dimensions_are_the_first_ones_at_length_one",
    "scaling_config.num_workers": _MORE_BUNDLES,
    "scaling_config.num_gpus_per_worker": _ONE_BUNDLE,
    "scaling_config.num_cpus_per_worker": _ONE_BUNDLE,
    "scaling_config.resources_per_worker": _ONE_BUNDLE,
    "scaling_config.placement_strategy": _MORE_BUNDLES,
    "scaling_config.pg_timeout_s": "tests/unit/workers/test_pool_replica.py"
    "::test_a_replica_without_a_place_is_tried_again_after_pg_timeout_s",
    **{f"deployment_config.autoscaling_config.{key}": test for key, test in _AUTOSCALING_TESTS.items()},
    **{f"model_config.initialization.s3_mirror_config.{key}": f"{_S3}::{test}" for key, test in _S3_TESTS.items()},
    **{f"model_config.initialization.gcs_mirror_config.{key}": f"{_GCS}::{test}" for key, test in _GCS_TESTS.items()},
    **{
        f"model_config.initialization.initializer[{type_}].{key}": test
        for type_ in ("SingleDevice", "DeviceMap", "DeepSpeed")
        for key, test in _SHARED.items()
    },
    "model_config.initialization.initializer[DeviceMap].device_map": f"{_DEVICE_MAP}"
    "::test_a_model_split_between_memory_and_disk_equals_the_whole_one",
    "model_config.initialization.initializer[DeviceMap].max_memory": f"{_DEVICE_MAP}"
    "::test_max_memory_sends_the_rest_to_disk",
    "model_config.initialization.initializer[DeepSpeed].use_kernel": f"{_DEEPSPEED}"
    "::test_use_kernel_asks_for_the_compilers_kernels_unless_the_file_says_which",
    "model_config.initialization.initializer[DeepSpeed].max_tokens": f"{_DEEPSPEED}"
    "::test_max_tokens_bounds_the_context",
    "model_config.initialization.initializer[DeepSpeed].use_meta_tensor": f"{_DEEPSPEED}"
    "::test_an_empty_model_takes_what_its_config_knows_and_refuses_the_rest",
    "model_config.initialization.initializer[DeepSpeed].ds_inference_kwargs": f"{_DEEPSPEED}"
    "::test_further_arguments_are_passed_on",
    "model_config.initialization.initializer[DeepSpeed].group_timeout_s": "tests/integration/"
    "test_tensor_parallel_pool.py::test_a_group_answers_and_the_loss_of_a_rank_rebuilds_it",
    "model_config.initialization.initializer[LlamaCpp].type": _TYPE,
    "model_config.initialization.initializer[LlamaCpp].model_filename": "tests/integration/test_llama_cpp_engine.py"
    "::test_a_file_that_is_not_there_is_named_with_those_that_are",
    "model_config.initialization.initializer[LlamaCpp].model_init_kwargs": "tests/unit/workers/test_llama_parameters.py"
    "::test_a_key_changes_something",
}


def leaves(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Every key that holds a value; `initializer[SingleDevice].dtype` where `type` chooses among sections."""
    for attribute, field in section.model_fields.items():
        key = f"{prefix}{yaml_names(attribute, field)[0]}"
        below = sections_in(field.annotation)
        if not below or attribute == "prompt_format":
            yield key
        for part in below:
            chosen_by = type_of(part)
            yield from leaves(part, f"{key}[{chosen_by}]." if chosen_by else f"{key}.")


@cache
def names_of_tests(file: str) -> frozenset[str]:
    """The tests of a file as pytest names them, read from its source."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    classes = [(f"{node.name}::", node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(
        f"{prefix}{node.name}"
        for prefix, body in [("", tree.body), *classes]
        for node in body
        if isinstance(node, functions) and node.name.startswith("test_")
    )


KEYS: Final = ("extends", *leaves(RegistryEntry))


@pytest.mark.parametrize("key", KEYS)
def test_the_key_has_a_test(key: str) -> None:
    assert key in PROVEN_BY, f"{key} is new: write a test that fails without it"


@pytest.mark.parametrize("key", PROVEN_BY)
def test_the_named_test_exists_and_so_does_its_key(key: str) -> None:
    assert key in KEYS, f"{key} is no key of the schema any more"
    file, _, name = PROVEN_BY[key].partition("::")
    assert name in names_of_tests(file), f"{PROVEN_BY[key]} is gone; name the test that proves {key}"
