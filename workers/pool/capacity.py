"""How many replicas of a model an empty cluster has room for. An estimate, made before anything is deployed.

Pure, like `placement`, whose words it uses where there is no room at all. It counts what nodes have, not what is free,
one model at a time, and fills nodes in the order they come: Ray may place better, and other work leaves less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from model_registry.schema import RegistryEntry
from workers.pool.placement import Node, Placement, Resources, lasting_obstacle, pieces_of, placement_for, shown_needs

NOT_TOGETHER: Final = "each of its workers fits somewhere, but not all at the same time"
_SLACK: Final = 1e-9
"""Shares of resources add up inexactly: ten times 0.1 must fit into 1."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a cluster offers one model."""

    needs: str
    num_fitting: int
    """Replicas that fit at the same time, `max_replicas` at most."""
    min_replicas: int
    max_replicas: int
    lack: str
    """Why no replica fits; empty when one does."""

    @property
    def is_enough(self) -> bool:
        """Whether the replicas that are kept at least fit; a model that goes to zero needs room for one."""
        return self.num_fitting >= max(self.min_replicas, 1)

    def __str__(self) -> str:
        if not self.num_fitting:
            return f"does not fit: a replica needs {self.needs}; {self.lack}"
        low, high = self.min_replicas, self.max_replicas
        wanted = f"{low if low == high else f'{low} to {high}'} replica{'s' if high > 1 else ''} wanted"
        room = f"an empty cluster has room for about {self.num_fitting} (estimate)"
        return f"{'fits' if self.is_enough else 'does not fit'}: {wanted}, {room}; each needs {self.needs}"


def fit_of(entry: RegistryEntry, nodes: Sequence[Node]) -> Fit:
    placement, autoscaling = placement_for(entry), entry.deployment.autoscaling_config
    num_fitting = _count(placement, nodes, autoscaling.max_replicas)
    return Fit(
        needs=shown_needs(placement),
        num_fitting=num_fitting,
        min_replicas=autoscaling.min_replicas,
        max_replicas=autoscaling.max_replicas,
        lack="" if num_fitting else lasting_obstacle(placement, nodes) or NOT_TOGETHER,
    )


def has_place(placement: Placement, free: Sequence[Resources]) -> bool:
    """Whether one replica can be placed on nodes with these resources left."""
    return _after_one_more(placement, free) is not None


def _count(placement: Placement, nodes: Sequence[Node], most: int) -> int:
    """Replicas placed one after the other until one does not fit, or all that are wanted do."""
    free = [node.resources for node in nodes]
    for num_placed in range(most):
        left = _after_one_more(placement, free)
        if left is None:
            return num_placed
        free = left
    return most


def _after_one_more(placement: Placement, free: Sequence[Resources]) -> list[Resources] | None:
    """What each node has left when one more replica is placed; None when there is no room for all its bundles."""
    left, used = list(free), set[int]()
    spreads = placement.strategy == "STRICT_SPREAD"
    for bundle in pieces_of(placement):
        places = (node for node in range(len(left)) if not (spreads and node in used) and _has(left[node], bundle))
        found = next(places, None)
        if found is None:
            return None
        left[found] = {name: amount - bundle.get(name, 0) for name, amount in left[found].items()}
        used.add(found)
    return left


def _has(free: Resources, bundle: Resources) -> bool:
    return all(free.get(name, 0) + _SLACK >= amount for name, amount in bundle.items())
