"""The environment of a worker's process, as Ray takes it: what the registry asks for over what Aviary sets itself.

Pure: knows Ray's names, not Ray. Used by the host for every worker it creates.
"""

from __future__ import annotations

import math
from typing import Any, Final

from model_registry.schema import LlamaCpp, RegistryEntry

LLAMA_SPIN_COUNT: Final = "1000"
"""How long OpenMP's threads spin before they sleep. llama.cpp's meet hundreds of times per token; by OpenMP's own
default they stand still where other processes want the same cores."""


def runtime_env_of(entry: RegistryEntry, *, is_front: bool) -> dict[str, Any]:
    """Ray's `runtime_env` of the front actor, which is worker 0, or of any other worker."""
    wanted = entry.runtime_env(is_front=is_front)
    if working_dir := wanted.get("working_dir"):
        wanted["working_dir"] = _uri_of(working_dir)
    return {**wanted, "env_vars": {**_own_env_vars(entry), **wanted.get("env_vars", {})}}


def _own_env_vars(entry: RegistryEntry) -> dict[str, str]:
    """As many compute threads as the registry gives the worker CPUs."""
    num_threads = max(1, math.ceil(entry.scaling.num_cpus_per_worker))
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(num_threads)}
    if isinstance(entry.model.initialization.initializer, LlamaCpp):
        variables["GOMP_SPINCOUNT"] = LLAMA_SPIN_COUNT
    return variables


def _uri_of(working_dir: str) -> str:
    """Ray uploads no folder for a single actor, but uses one that every node has."""
    return f"local://{working_dir}" if working_dir.startswith("/") else working_dir
