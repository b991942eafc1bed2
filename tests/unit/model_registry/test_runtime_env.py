"""The environment of a worker's process: what Ray would refuse is refused first, and two of them become one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from model_registry.runtime_env import merged
from model_registry.schema import RegistryEntry, RuntimeEnv

PATHS = ("every", "front")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pip": ["a"], "uv": ["b"]}, "keep one of them"),
        ({"pip": [""]}, "is not one requirement"),
        ({"uv": ["a\nb"]}, "is not one requirement"),
        ({"pip": "requirements.txt"}, "list"),
        ({"env_vars": {"A B": "1"}}, '"A B" is not a name'),
        ({"env_vars": {"": "1"}}, "is not a name"),
        ({"env_vars": {"A": 1}}, "string"),
        ({"env_vars": {"A": "\0"}}, "NUL"),
        ({"working_dir": "."}, "is not absolute"),
        ({"working_dir": "code/here"}, "is not absolute"),
        ({"working_dir": "local://code"}, "is not absolute"),
        ({"working_dir": "ftp://host/code.zip"}, "neither an absolute folder nor a URI"),
        ({"working_dir": "gcs://_ray_pkg_1.zip"}, "neither an absolute folder nor a URI"),
        ({"working_dir": "s3://bucket/code"}, "is not an archive"),
        ({"conda": "env"}, "Extra inputs"),
    ],
)
def test_what_ray_would_refuse_on_the_node_is_refused_here(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RuntimeEnv.model_validate(values)


@pytest.mark.parametrize(
    "working_dir",
    ["/code", "local:///code", "s3://bucket/code.zip", "https://host/code.tar.gz?token=1", "file:///shared/code.tgz"],
)
def test_a_working_dir_is_a_folder_of_every_node_or_an_archive(working_dir: str) -> None:
    assert RuntimeEnv.model_validate({"working_dir": working_dir}).given == {"working_dir": working_dir}


def test_variables_join_and_other_keys_stand_side_by_side() -> None:
    every = {"pip": ["a"], "env_vars": {"A": "1", "B": "2"}}
    front = {"working_dir": "/code", "env_vars": {"B": "2", "C": "3"}}
    assert merged(every, front, paths=PATHS) == {
        "pip": ["a"],
        "working_dir": "/code",
        "env_vars": {"A": "1", "B": "2", "C": "3"},
    }
    assert merged(every, {}, paths=PATHS) == every
    assert merged({}, {}, paths=PATHS) == {}


@pytest.mark.parametrize(
    ("every", "front", "places"),
    [
        ({"pip": ["a"]}, {"pip": ["b"]}, "every.pip and front.pip differ"),
        ({"working_dir": "/a"}, {"working_dir": "/b"}, "every.working_dir and front.working_dir differ"),
        ({"env_vars": {"A": "1"}}, {"env_vars": {"A": "2"}}, "every.env_vars.A and front.env_vars.A differ"),
        ({"pip": ["a"]}, {"uv": ["a"]}, "every.pip and front.uv contradict each other"),
    ],
)
def test_a_contradiction_names_both_places(every: dict[str, Any], front: dict[str, Any], places: str) -> None:
    with pytest.raises(ValueError, match=places):
        merged(every, front, paths=PATHS)
    assert merged(every, every, paths=PATHS) == every


def entry(every: dict[str, Any] | None, front: dict[str, Any] | None) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "deployment_config": {"ray_actor_options": {"runtime_env": front}},
            "model_config": {
                "model_id": "a/b",
                "initialization": {"initializer": {"type": "Echo"}, "runtime_env": every},
            },
        }
    )


def test_the_front_has_both_environments_and_another_worker_the_replicas() -> None:
    both = entry({"pip": ["a"], "env_vars": {"A": "1"}}, {"env_vars": {"B": "2"}})
    assert both.runtime_env(is_front=True) == {"pip": ["a"], "env_vars": {"A": "1", "B": "2"}}
    assert both.runtime_env(is_front=False) == {"pip": ["a"], "env_vars": {"A": "1"}}
    assert entry(None, None).runtime_env(is_front=True) == {}
    assert entry(None, None).runtime_env(is_front=False) == {}


def test_a_file_whose_two_environments_contradict_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"initialization\.runtime_env\.pip and deployment_config\.ray_actor"):
        entry({"pip": ["a"]}, {"pip": ["b"]})
