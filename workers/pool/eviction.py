"""Which replicas make room for a model that is wanted and fits nowhere now. Pure functions of resources and use.

Models that may have fewer replicas share a cluster that cannot hold all of them: the least recently used goes first,
and no more of them than are needed. The manager asks when a replica lacks room, and drains those that are named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workers.pool.capacity import has_place
from workers.pool.placement import Placement, Resources, total_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A replica that may be asked to go."""

    model_id: str
    replica_id: str
    reserved: tuple[tuple[str, Resources], ...]
    """Its bundles, each with the id of the node that holds it."""
    last_used_at: float


def choose_victims(
    placement: Placement, free: Mapping[str, Resources], residents: Sequence[Resident]
) -> tuple[Resident, ...]:
    """Those to drain so that the placement has room on the nodes, whose free resources are given by id.

    None when there is room already, or would not be even without all residents: nobody goes in vain.
    """
    oldest_first = sorted(residents, key=lambda one: one.last_used_at)
    victims: list[Resident] = []
    for resident in oldest_first:
        if _fits(placement, free, victims):
            break
        victims.append(resident)
    if not _fits(placement, free, victims):
        return ()
    for victim in victims.copy():
        others = [one for one in victims if one is not victim]
        if _fits(placement, free, others):
            victims = others
    return tuple(victims)


def _fits(placement: Placement, free: Mapping[str, Resources], gone: Iterable[Resident]) -> bool:
    freed: dict[str, list[Resources]] = {node: [resources] for node, resources in free.items()}
    for resident in gone:
        for node, resources in resident.reserved:
            if node in freed:  # a node that died meanwhile frees nothing
                freed[node].append(resources)
    return has_place(placement, [total_of(*parts) for parts in freed.values()])
