"""Environments of worker processes on a real Ray: what the registry asks for is there, or the reason is told.

The worker's process is looked at from outside, through /proc: nothing in the product exists for these tests. What is
installed is tested in tests/e2e/test_runtime_env.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from model_registry.contract import ModelView
from tests.support.live_cluster import ACCELERATOR
from tests.support.live_pool import OPTIONS, entry, num_ready, until
from workers.pool.client import PoolClient


async def pid_of(pool: PoolClient, model: ModelView) -> int:
    return (await pool.pids())[model.replicas[0].replica_id]


def variables_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def cwd_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/cwd").readlink()


async def test_variables_folder_and_accelerator_reach_the_worker(pool: PoolClient, tmp_path: Path) -> None:
    every = {"env_vars": {"OMP_NUM_THREADS": "3", "EVERY": "e"}, "working_dir": str(tmp_path)}
    front = {"env_vars": {"EVERY": "e", "FRONT": "f"}}
    options = {"runtime_env": front, "accelerator_type": ACCELERATOR}
    wanted = entry("test/env", initialization={"runtime_env": every}, actor_options=options)
    await pool.apply([wanted, entry("test/plain")], OPTIONS)
    view = await until(pool, lambda models: all(num_ready(model) == 1 for model in models.values()))
    pid, plain = [await pid_of(pool, model) for model in view.models]
    variables = variables_of(pid)
    assert (variables["OMP_NUM_THREADS"], variables["EVERY"], variables["FRONT"]) == ("3", "e", "f")
    assert cwd_of(pid) == tmp_path
    assert variables["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    assert variables_of(plain)["OMP_NUM_THREADS"] == "1"
    assert "EVERY" not in variables_of(plain)


async def test_what_cannot_be_had_fails_with_its_reason(pool: PoolClient, tmp_path: Path) -> None:
    missing = {"runtime_env": {"working_dir": str(tmp_path / "missing")}}
    await pool.apply(
        [
            entry("test/folder", initialization=missing),
            entry("test/accelerator", actor_options={"accelerator_type": "H100"}, pg_timeout_s=0.5),
        ],
        OPTIONS,
    )
    view = await until(
        pool,
        lambda models: (
            "cannot be set up" in models["test/folder"].replicas[0].detail
            and "pg_timeout_s" in models["test/accelerator"].replicas[0].detail
        ),
    )
    folder, accelerator = (model.replicas[0].detail for model in view.models)
    assert "its runtime environment cannot be set up: " in folder
    assert str(tmp_path / "missing") in folder
    assert "no place within 0.5 s (scaling_config.pg_timeout_s)" in accelerator
    assert "no node offers accelerator_type:H100" in accelerator
