"""The seam between a gateway and whatever knows the pool. Knows neither Ray nor HTTP.

`pool_client` implements it over Ray; tests implement it in memory. The dispatcher's owner reads it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from model_registry.contract import PoolView


class PoolSource(Protocol):
    """Tells what is deployed, and again after every change."""

    def views(self) -> AsyncIterator[PoolView]:
        """The current view as soon as it is known, then every newer one; never ends by itself."""

    async def close(self) -> None:
        """Lets go of the pool; the pool itself is left alone."""
