"""The life of a batch: which state may follow which. Pure; whoever changes a batch asks here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.protocol.batches import Batch, BatchStatus

FOLLOWING: Final[Mapping[BatchStatus, frozenset[BatchStatus]]] = {
    BatchStatus.VALIDATING: frozenset((BatchStatus.IN_PROGRESS, BatchStatus.FAILED, BatchStatus.CANCELLING)),
    BatchStatus.IN_PROGRESS: frozenset((BatchStatus.FINALIZING, BatchStatus.CANCELLING)),
    BatchStatus.FINALIZING: frozenset((BatchStatus.COMPLETED, BatchStatus.EXPIRED)),
    BatchStatus.CANCELLING: frozenset((BatchStatus.CANCELLED,)),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}
ACTIVE: Final = tuple(status for status, following in FOLLOWING.items() if following)
"""Something is left to do."""


class ForbiddenChangeError(Exception):
    """The state that is wanted cannot follow the one that is."""


def changed(batch: Batch, status: BatchStatus, now: float, **fields: Any) -> Batch:
    """The batch in its next state, with the moment noted. Raises `ForbiddenChangeError`."""
    if status not in FOLLOWING[batch.status]:
        raise ForbiddenChangeError(f"a batch that is {batch.status} does not become {status}")
    return msgspec.structs.replace(batch, status=status, **{f"{status}_at": int(now)}, **fields)
