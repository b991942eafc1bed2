"""Bundles from the registry, and reasons for waiting in people's words."""

from __future__ import annotations

from typing import Any

import pytest

from model_registry.schema import RegistryEntry
from workers.pool.placement import SMALLEST_RESERVATION, Node, Placement, explain_pending, placement_for


def entry(*, actor_options: dict[str, Any] | None = None, type_: str = "Echo", **scaling: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": type_}}},
            "deployment_config": {"ray_actor_options": actor_options or {}},
            "scaling_config": {"num_gpus_per_worker": 0, **scaling},
        }
    )


def placement(*bundles: dict[str, float], strategy: Any = "PACK") -> Placement:
    return Placement(bundles, strategy)


def test_one_worker_is_one_bundle_with_everything_the_file_asks_for() -> None:
    wanted = placement_for(
        entry(
            actor_options={"resources": {"instance_type_m5": 0.01}, "num_cpus": 1, "memory": 2**30},
            num_cpus_per_worker=4,
            num_gpus_per_worker=1,
            resources_per_worker={"instance_type_g5": 0.01},
        )
    )
    assert wanted.bundles == (
        {"CPU": 5, "GPU": 1, "instance_type_g5": 0.01, "memory": 2**30, "instance_type_m5": 0.01},
    )


def test_what_is_zero_is_not_asked_for() -> None:
    assert placement_for(entry(num_cpus_per_worker=1)).bundles == ({"CPU": 1},)


def test_a_replica_that_asks_for_nothing_still_has_a_bundle() -> None:
    assert placement_for(entry(num_cpus_per_worker=0)).bundles == (SMALLEST_RESERVATION,)


def test_each_further_worker_has_a_bundle_of_its_own() -> None:
    wanted = placement_for(
        entry(
            actor_options={"num_cpus": 1, "num_gpus": 1},
            type_="DeepSpeed",
            num_workers=3,
            num_cpus_per_worker=2,
            placement_strategy="STRICT_SPREAD",
        )
    )
    assert list(wanted.bundles) == [{"CPU": 3, "GPU": 1}, {"CPU": 2}, {"CPU": 2}]
    assert wanted.strategy == "STRICT_SPREAD"


def test_an_accelerator_is_asked_for_as_ray_does_and_for_the_front_only() -> None:
    wanted = placement_for(entry(actor_options={"accelerator_type": "H100"}, type_="DeepSpeed", num_workers=2))
    assert list(wanted.bundles) == [{"CPU": 1, "accelerator_type:H100": 0.001}, {"CPU": 1}]
    assert explain_pending(wanted, [LARGE]).text.endswith("; no node offers accelerator_type:H100")


SMALL = Node("small", {"CPU": 2, "memory": 2**30})
LARGE = Node("large", {"CPU": 8})
G5 = Node("g5", {"CPU": 1, "instance_type_g5": 1})


@pytest.mark.parametrize(
    ("wanted", "nodes", "expected"),
    [
        (
            placement({"CPU": 1, "instance_type_g5": 0.01}),
            [SMALL],
            "pending: needs {CPU: 1, instance_type_g5: 0.01}; no node offers instance_type_g5",
        ),
        (placement({"GPU": 1, "x": 1}), [SMALL], "pending: needs {GPU: 1, x: 1}; no node offers GPU or x"),
        (placement({"CPU": 4}), [SMALL, G5], "pending: needs {CPU: 4}; largest node offers CPU: 2"),
        (
            placement({"memory": 2**31}),
            [SMALL],
            "pending: needs {memory: 2 GiB}; largest node offers memory: 1 GiB",
        ),
        (
            placement({"CPU": 4, "instance_type_g5": 0.5}),
            [LARGE, G5],
            "pending: needs {CPU: 4, instance_type_g5: 0.5}; no single node offers all of it",
        ),
        (placement({"CPU": 2}), [SMALL], "pending: needs {CPU: 2}; fits node small, busy now"),
        (placement({"CPU": 2}), [SMALL, LARGE], "pending: needs {CPU: 2}; fits node small or 1 other, busy now"),
        (placement({"CPU": 1}), [], "pending: needs {CPU: 1}; no node is alive"),
        (
            placement({"CPU": 2}, {"CPU": 2}, strategy="STRICT_SPREAD"),
            [SMALL],
            "pending: needs 2 of {CPU: 2}; only 1 of the 2 nodes it must spread over fit",
        ),
        (
            placement({"CPU": 5}, {"CPU": 5}, strategy="STRICT_PACK"),
            [LARGE],
            "pending: needs 2 of {CPU: 5}; largest node offers CPU: 8",
        ),
        (
            placement({"CPU": 1}, {"GPU": 1}),
            [LARGE],
            "pending: needs {CPU: 1} and {GPU: 1}; no node offers GPU",
        ),
    ],
)
def test_the_reason_names_what_is_missing(wanted: Placement, nodes: list[Node], expected: str) -> None:
    reason = explain_pending(wanted, nodes)
    assert reason.text == expected
    assert reason.is_lasting is not expected.endswith("busy now"), "busy nodes have room again one day"
