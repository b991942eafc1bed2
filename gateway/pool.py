"""The seam between a gateway and whatever knows the pool. Knows neither Ray nor HTTP.

`pool_client` implements it over Ray; tests implement it in memory. The dispatcher's owner reads it, the load reporter
tells it what there was to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from model_registry.contract import LoadReport, PoolView


class PoolSource(Protocol):
    """Tells what is deployed, and again after every change."""

    def views(self) -> AsyncIterator[PoolView]:
        """The current view as soon as it is known, then every newer one; never ends by itself."""

    async def report(self, reports: Sequence[LoadReport]) -> None:
        """Tells what this gateway had to do. What cannot be told is lost: the next report says it again."""

    async def close(self) -> None:
        """Lets go of the pool; the pool itself is left alone."""
