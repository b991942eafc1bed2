"""How many replicas an empty cluster has room for, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from model_registry.schema import RegistryEntry
from workers.pool.capacity import NOT_TOGETHER, fit_of
from workers.pool.placement import Node

GPUS = [Node("g1", {"CPU": 8, "GPU": 4, "accelerator_type:A10G": 1}), Node("g2", {"CPU": 8, "GPU": 2})]


def entry(
    *,
    initializer: str = "DeepSpeed",
    replicas: tuple[int, int] = (1, 8),
    accelerator: str | None = None,
    **scaling: Any,
) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": initializer}}},
            "deployment_config": {
                "autoscaling_config": {"min_replicas": replicas[0], "max_replicas": replicas[1]},
                "ray_actor_options": {"accelerator_type": accelerator},
            },
            "scaling_config": scaling,
        }
    )


@pytest.mark.parametrize(
    ("wanted", "num_fitting"),
    [
        (entry(num_workers=1), 6),
        (entry(num_workers=1, num_gpus_per_worker=0.5), 8),
        (entry(num_workers=2), 3),
        (entry(num_workers=4), 1),
        (entry(num_workers=6), 1),
        (entry(num_workers=6, placement_strategy="STRICT_PACK"), 0),
        (entry(num_workers=4, placement_strategy="STRICT_PACK"), 1),
        (entry(num_workers=2, placement_strategy="STRICT_SPREAD"), 2),
        (entry(num_workers=3, placement_strategy="STRICT_SPREAD"), 0),
        (entry(num_workers=7), 0),
        (entry(num_workers=1, num_cpus_per_worker=8), 2),
        (entry(num_workers=1, accelerator="A10G"), 4),
        (entry(num_workers=1, replicas=(1, 2)), 2),
        (entry(initializer="DeviceMap", num_gpus_per_worker=3), 1),
        (entry(initializer="Echo", num_gpus_per_worker=0, num_cpus_per_worker=0.1, replicas=(1, 10)), 10),
    ],
)
def test_replicas_are_counted_until_a_bundle_finds_no_node(wanted: RegistryEntry, num_fitting: int) -> None:
    assert fit_of(wanted, GPUS).num_fitting == num_fitting


def test_ten_tenths_of_a_resource_fit_into_one() -> None:
    tenths = entry(initializer="Echo", num_gpus_per_worker=0.1, num_cpus_per_worker=0, replicas=(10, 20))
    assert fit_of(tenths, [Node("g", {"GPU": 1})]).num_fitting == 10


@pytest.mark.parametrize(
    ("wanted", "is_enough", "words"),
    [
        (
            entry(num_workers=2, replicas=(2, 4)),
            True,
            "fits: 2 to 4 replicas wanted, an empty cluster has room for about 3 (estimate); "
            "each needs 2 of {CPU: 1, GPU: 1}",
        ),
        (
            entry(num_workers=2, replicas=(4, 4)),
            False,
            "does not fit: 4 replicas wanted, an empty cluster",
        ),
        (entry(num_workers=1, replicas=(0, 1)), True, "fits: 0 to 1 replica wanted"),
        (
            entry(accelerator="H100", replicas=(0, 1)),
            False,
            "does not fit: a replica needs {CPU: 1, GPU: 1, accelerator_type:H100: 0.001}; no node offers "
            "accelerator_type:H100",
        ),
        (entry(num_workers=7), False, f"does not fit: a replica needs 7 of {{CPU: 1, GPU: 1}}; {NOT_TOGETHER}"),
        (entry(initializer="DeviceMap", num_gpus_per_worker=8), False, "largest node offers GPU: 4"),
    ],
)
def test_what_is_said_of_it(wanted: RegistryEntry, is_enough: bool, words: str) -> None:
    fit = fit_of(wanted, GPUS)
    assert fit.is_enough == is_enough
    assert words in str(fit)


def test_a_cluster_without_nodes_has_room_for_nothing() -> None:
    assert "no node is alive" in str(fit_of(entry(), []))
