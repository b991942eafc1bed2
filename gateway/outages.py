"""Which models nobody serves: their requests are refused, instead of waiting for what does not come.

A ready replica without a connection is waited for, but not long. Called by the dispatcher whenever a link or the pool
has changed; nothing else marks lanes as out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.model_lane import ModelLane

CONNECT_GRACE_S: Final = 5.0
"""How long requests wait for a ready replica that is not connected, before they are refused."""


class Outages:
    """Of all models of a gateway. Needs a running event loop."""

    def __init__(self, on_out: Callable[[ModelLane], None]) -> None:
        """`on_out` is called when a model is out; what it has queued is to be refused."""
        self._on_out = on_out
        self._timers: dict[ModelLane, asyncio.TimerHandle] = {}

    def watch(self, lane: ModelLane) -> None:
        """See whether it can be served, now or soon."""
        if lane.is_reachable or (not lane.links and lane.view.may_wait):
            lane.is_out = False
            self.forget(lane)
        elif not lane.links and not lane.ready_replicas:
            self._declare(lane)
        elif not lane.is_out and lane not in self._timers:
            # Either a link comes up soon, or a replica drains that the pool's view still shows: news will come.
            self._timers[lane] = asyncio.get_running_loop().call_later(CONNECT_GRACE_S, self._declare, lane)

    def forget(self, lane: ModelLane) -> None:
        """Expect nothing of it any more."""
        timer = self._timers.pop(lane, None)
        if timer is not None:
            timer.cancel()

    def _declare(self, lane: ModelLane) -> None:
        lane.is_out = True
        self.forget(lane)
        self._on_out(lane)
