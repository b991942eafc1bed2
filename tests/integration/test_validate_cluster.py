"""`aviary validate --cluster` as a person runs it, against a real Ray: what it says, its exit status, and no traces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from aviary.ray_cluster import RayCluster
from tests.support.live_cluster import ACCELERATOR
from tests.support.live_pool import entry

pytestmark = pytest.mark.timeout(180)


def write(folder: Path, **entries: dict[str, object]) -> Path:
    for name, options in entries.items():
        values = entry(f"test/{name}", **options).model_dump(mode="json", by_alias=True, exclude_unset=True)  # type: ignore[arg-type]
        (folder / f"test--{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def validate(path: Path, address: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aviary", "validate", str(path), "--cluster", "--address", address],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_cluster_with_room_for_all_models_ends_with_0(cluster: RayCluster, tmp_path: Path) -> None:
    registry = write(tmp_path, fits={"replicas": 2, "actor_options": {"accelerator_type": ACCELERATOR}})
    done = validate(registry, cluster.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test/fits: fits: 2 replicas wanted, an empty cluster has room for about 2 (estimate)" in done.stdout
    assert ray.util.list_named_actors(all_namespaces=True) == [], "asking leaves nothing behind"


def test_a_cluster_too_small_ends_with_1_and_says_what_it_lacks(cluster: RayCluster, tmp_path: Path) -> None:
    registry = write(
        tmp_path, fits={}, large={"num_cpus_per_worker": 9}, gpu={"actor_options": {"accelerator_type": "H100"}}
    )
    done = validate(registry, cluster.address)
    assert done.returncode == 1
    assert done.stderr == "aviary: this cluster is too small for test/gpu, test/large\n"
    assert "test/fits: fits" in done.stdout
    assert "test/large: does not fit: a replica needs {CPU: 9}; largest node offers CPU: 8" in done.stdout
    assert "no node offers accelerator_type:H100" in done.stdout


def test_a_cluster_that_cannot_be_asked_ends_with_2(tmp_path: Path) -> None:
    done = validate(write(tmp_path, fits={}), "127.0.0.1:9")
    assert done.returncode == 2
    assert "no Ray head answers at 127.0.0.1:9" in done.stderr
