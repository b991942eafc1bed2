"""Room for models that are wanted and fit nowhere now: others are drained for them, one need after the other.

Asks the deployments who lacks room and who could go, the cluster what is free, and `eviction` whom to drain. The
manager starts it beside its other tasks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Final

from workers.pool.deployment import Deployment
from workers.pool.eviction import choose_victims
from workers.pool.ray_host import free_resources

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.5
"""Between two looks whether a model lacks room."""
PATIENCE_S: Final = 10.0
"""How long a model without any replica waits for another one to fall idle, before a busy one is drained for it."""


class RoomKeeper:
    """Shares a cluster between the models of a pool."""

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        """`deployments` by model id, as they are at any moment."""
        self._deployments = deployments
        self._lacking_since: dict[str, float] = {}

    async def run(self) -> None:
        """For ever; ends by cancellation."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.make_room(time.monotonic())
            except Exception:
                # An edge: Ray has no one type for a head that restarts, and models must share again once it is back.
                logger.warning("no room could be made now", exc_info=True)

    async def make_room(self, now: float) -> None:
        """For the model that has waited longest and can be helped; what was drained before must have gone first."""
        lacking = [model_id for model_id, one in self._deployments.items() if one.lacks_room]
        self._lacking_since = {model_id: self._lacking_since.get(model_id, now) for model_id in lacking}
        if not lacking or any(deployment.is_retiring for deployment in self._deployments.values()):
            return
        free = await asyncio.to_thread(free_resources)
        for model_id in sorted(lacking, key=lambda one: self._lacking_since[one]):
            hungry = self._deployments[model_id]
            busy_too = not hungry.serving_ids and now - self._lacking_since[model_id] > PATIENCE_S
            others = [one for one in self._deployments.values() if one is not hungry]
            residents = await asyncio.gather(*(other.residents(busy_too=busy_too) for other in others))
            victims = choose_victims(hungry.placement, free, [one for some in residents for one in some])
            for victim in victims:
                self._deployments[victim.model_id].evict(victim.replica_id)
            if victims:
                return
