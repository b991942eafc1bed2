"""What Ray is told about a worker's process."""

from __future__ import annotations

from typing import Any

import pytest

from model_registry.schema import RegistryEntry
from workers.pool.process_environment import runtime_env_of


def entry(*, num_cpus: float = 1, front: dict[str, Any] | None = None, **every: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "deployment_config": {"ray_actor_options": {"runtime_env": front}},
            "model_config": {
                "model_id": "a/b",
                "initialization": {"initializer": {"type": "Echo"}, "runtime_env": every},
            },
            "scaling_config": {"num_cpus_per_worker": num_cpus},
        }
    )


@pytest.mark.parametrize(("num_cpus", "num_threads"), [(0, "1"), (0.5, "1"), (4, "4"), (2.5, "3")])
def test_a_process_has_as_many_compute_threads_as_cpus(num_cpus: float, num_threads: str) -> None:
    assert runtime_env_of(entry(num_cpus=num_cpus), is_front=True)["env_vars"]["OMP_NUM_THREADS"] == num_threads


def test_the_registrys_variables_win_over_aviarys() -> None:
    env_vars = runtime_env_of(entry(env_vars={"OMP_NUM_THREADS": "7", "A": "b"}), is_front=True)["env_vars"]
    assert env_vars == {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "7", "A": "b"}


def test_packages_and_an_archive_are_handed_on_and_a_folder_is_used_where_it_lies() -> None:
    given = runtime_env_of(entry(pip=["einops"], working_dir="/code"), is_front=True)
    assert (given["pip"], given["working_dir"]) == (["einops"], "local:///code")
    archive = runtime_env_of(entry(uv=["einops"], working_dir="s3://b/code.zip"), is_front=True)
    assert (archive["uv"], archive["working_dir"]) == (["einops"], "s3://b/code.zip")


@pytest.mark.parametrize("key", ["pip", "uv", "working_dir"])
def test_each_key_of_either_environment_reaches_its_processes(key: str) -> None:
    value: Any = "/code" if key == "working_dir" else ["einops"]
    shown = "local:///code" if key == "working_dir" else ["einops"]
    for_all, for_front = entry(**{key: value}), entry(front={key: value})
    assert runtime_env_of(for_all, is_front=True)[key] == runtime_env_of(for_all, is_front=False)[key] == shown
    assert runtime_env_of(for_front, is_front=True)[key] == shown
    assert key not in runtime_env_of(for_front, is_front=False)


def test_the_front_actors_own_environment_reaches_no_other_worker() -> None:
    both = entry(front={"env_vars": {"FRONT": "1"}}, env_vars={"EVERY": "1"})
    assert {"FRONT", "EVERY"} <= runtime_env_of(both, is_front=True)["env_vars"].keys()
    assert "FRONT" not in runtime_env_of(both, is_front=False)["env_vars"]
    assert "EVERY" in runtime_env_of(both, is_front=False)["env_vars"]
