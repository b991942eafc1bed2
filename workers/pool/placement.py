"""Where a replica may live: its bundles of resources, and in people's words why none of the nodes has room for them.

Pure functions of a registry entry and of the nodes' resources; `ray_host` reserves what they say. Resources are named
as Ray does: `CPU`, `GPU`, `memory` (bytes), and custom ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_registry.schema import PlacementStrategy, RegistryEntry

Resources = Mapping[str, float]

SMALLEST_RESERVATION: Resources = {"CPU": 0.001}
"""What a replica that asks for nothing reserves: Ray places nothing that is empty."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What a replica reserves, all of it or nothing."""

    bundles: tuple[Resources, ...]
    """One per worker; a worker fits on one node."""
    strategy: PlacementStrategy


@dataclass(frozen=True, slots=True)
class Node:
    """A living node and everything it has, used or not."""

    name: str
    resources: Resources


@dataclass(frozen=True, slots=True)
class PendingReason:
    """Why a placement is not reserved yet."""

    text: str
    """Such as `pending: needs {CPU: 1}; no node offers CPU`."""
    is_lasting: bool
    """The nodes there are could never hold it; otherwise they are busy now."""


def placement_for(entry: RegistryEntry) -> Placement:
    """One bundle per worker. The front actor's resources join the first: the front actor *is* worker 0."""
    scaling = entry.scaling
    worker = {"CPU": scaling.num_cpus_per_worker, "GPU": scaling.num_gpus_per_worker, **scaling.resources_per_worker}
    options = entry.deployment.ray_actor_options
    front = {
        "CPU": options.num_cpus or 0,
        "GPU": options.num_gpus or 0,
        "memory": options.memory or 0,
        **options.resources,
        **_accelerator(options.accelerator_type),
    }
    bundles = [total_of(worker, front), *(total_of(worker) for _ in range(scaling.num_workers - 1))]
    return Placement(tuple(bundle or SMALLEST_RESERVATION for bundle in bundles), scaling.placement_strategy)


def _accelerator(accelerator_type: str | None) -> Resources:
    """An accelerator type as Ray itself asks for it: a sliver of a resource that nodes with such a one offer."""
    return {f"accelerator_type:{accelerator_type}": 0.001} if accelerator_type else {}


def explain_pending(placement: Placement, nodes: Sequence[Node]) -> PendingReason:
    obstacle = lasting_obstacle(placement, nodes)
    text = f"pending: needs {shown_needs(placement)}; {obstacle or _busy(placement, nodes)}"
    return PendingReason(text, is_lasting=obstacle is not None)


def lasting_obstacle(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """What keeps these nodes from ever holding the placement's bundles; None when each of them fits somewhere."""
    if not nodes:
        return "no node is alive"
    pieces = pieces_of(placement)
    for piece in pieces:
        if obstacle := _obstacle_of(piece, nodes):
            return obstacle
    num_nodes = sum(any(_fits(piece, node) for piece in pieces) for node in nodes)
    if placement.strategy == "STRICT_SPREAD" and num_nodes < len(pieces):
        return f"only {num_nodes} of the {len(pieces)} nodes it must spread over fit"
    return None


def pieces_of(placement: Placement) -> tuple[Resources, ...]:
    """What must fit on one node each: the bundles, or all of them together."""
    return (total_of(*placement.bundles),) if placement.strategy == "STRICT_PACK" else placement.bundles


def _busy(placement: Placement, nodes: Sequence[Node]) -> str:
    first, *others = _nodes_that_fit(pieces_of(placement)[0], nodes)
    more = f" or {len(others)} other{'s' if len(others) > 1 else ''}" if others else ""
    return f"fits node {first.name}{more}, busy now"


def _obstacle_of(bundle: Resources, nodes: Sequence[Node]) -> str | None:
    most = {name: max(node.resources.get(name, 0) for node in nodes) for name in bundle}
    absent = [name for name in bundle if most[name] == 0]
    if absent:
        return f"no node offers {' or '.join(absent)}"
    short = {name: most[name] for name in bundle if most[name] < bundle[name]}
    if short:
        return f"largest node offers {_listed(short)}"
    return None if _nodes_that_fit(bundle, nodes) else "no single node offers all of it"


def _nodes_that_fit(bundle: Resources, nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if _fits(bundle, node)]


def _fits(bundle: Resources, node: Node) -> bool:
    return all(node.resources.get(name, 0) >= amount for name, amount in bundle.items())


def total_of(*parts: Resources) -> dict[str, float]:
    """All parts together, without what is zero."""
    total: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return {name: amount for name, amount in total.items() if amount}


def shown_needs(placement: Placement) -> str:
    """Its bundles in people's words: `4 of {CPU: 4, GPU: 1}`."""
    counts: dict[str, int] = {}
    for bundle in placement.bundles:
        text = f"{{{_listed(bundle)}}}"
        counts[text] = counts.get(text, 0) + 1
    return " and ".join(text if count == 1 else f"{count} of {text}" for text, count in counts.items())


def _listed(resources: Resources) -> str:
    return ", ".join(f"{name}: {_amount(name, amount)}" for name, amount in resources.items())


def _amount(name: str, amount: float) -> str:
    return f"{amount / 2**30:.3g} GiB" if name == "memory" else f"{amount:g}"
