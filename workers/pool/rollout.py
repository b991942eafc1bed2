"""Which replicas of one model to start and which to retire next. A pure function of what there is and what is wanted.

The deployment asks after every change and does what it says; asked again and again, with replicas that come up, it
arrives at `target` replicas of the current revision, and as long as an older one serves it does not take away what is
not replaced. New before old where nodes have room for one more; where they have not, one old one makes room at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from model_registry.contract import ReplicaState

SURGE_SHARE: Final = 0.25
"""Of the wanted replicas: how many more there may be while old ones are replaced; one at least."""

_USELESS_FIRST: Final = {
    ReplicaState.FAILED: 0,
    ReplicaState.PENDING: 1,
    ReplicaState.STARTING: 2,
    ReplicaState.READY: 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that was not told to end yet."""

    is_current: bool
    """Of the revision that is wanted."""
    state: ReplicaState
    lacks_room: bool = False
    """It waits for its place, and nodes that could hold it are busy."""
    num_ongoing: int = 0
    """Requests it has."""


@dataclass(frozen=True, slots=True)
class Plan:
    num_new: int = 0
    """Replicas of the current revision to start."""
    retired: tuple[int, ...] = ()
    """Indexes of the candidates to drain and remove."""


def plan(candidates: Sequence[Candidate], target: int, *, is_draining: bool = False) -> Plan:
    """The next moves. `is_draining`: a replica that was retired before still holds its resources."""
    current = [index for index, one in enumerate(candidates) if one.is_current]
    outdated = [index for index, one in enumerate(candidates) if not one.is_current]
    retired = _surplus(candidates, current, target)
    retired += _outdated(candidates, current, outdated, target, is_draining=is_draining)
    num_missing = max(0, target - len(current))
    if num_outdated := len(outdated) - len(set(outdated) & set(retired)):
        most = target + max(1, math.ceil(SURGE_SHARE * target))
        num_missing = max(0, min(num_missing, most - len(current) - num_outdated))
    return Plan(num_missing, tuple(sorted(retired)))


def _surplus(candidates: Sequence[Candidate], indexes: Sequence[int], num_kept: int) -> list[int]:
    """Those beyond `num_kept`: first what does not serve, then what has least to do, then the newest."""
    num_surplus = max(0, len(indexes) - num_kept)

    def worth(index: int) -> tuple[int, int, int]:
        one = candidates[index]
        return _USELESS_FIRST[one.state], one.num_ongoing, -index

    return sorted(indexes, key=worth)[:num_surplus]


def _outdated(
    candidates: Sequence[Candidate], current: Sequence[int], outdated: Sequence[int], target: int, *, is_draining: bool
) -> list[int]:
    """An old replica is kept as long as it serves and no new one took its place."""
    serving = [index for index in outdated if candidates[index].state is ReplicaState.READY]
    useless = [index for index in outdated if index not in serving]
    num_replaced = sum(candidates[index].state is ReplicaState.READY for index in current)
    retired = useless + _surplus(candidates, serving, max(0, target - num_replaced))
    needs_room = any(candidates[index].lacks_room for index in current)
    if needs_room and not retired and not is_draining:
        retired = _surplus(candidates, serving, max(0, len(serving) - 1))
    return retired
