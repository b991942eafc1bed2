"""Tells the pool how much there is to do, so that the number of replicas can follow the load.

For each model whose number of replicas may change: a look at its load every sampling interval, a report every
`metrics_interval_s`. A request that waits for a model of which nothing runs is reported at once, and again while it
waits: nothing else starts the first replica. One task beside the dispatcher; how a report travels is the pool's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Final

from gateway.dispatch import Dispatcher
from gateway.load import Load, LoadHistory, sampling_interval_s
from gateway.pool import PoolSource
from model_registry.contract import LoadReport, ModelView
from model_registry.schema import AutoscalingConfig

logger = logging.getLogger(__name__)

STARVED_INTERVAL_S: Final = 1.0
"""Between two reports of a model that has requests and no replica."""
LONGEST_PAUSE_S: Final = 1.0


@dataclass(slots=True)
class _Watched:
    """One model whose replicas follow the load."""

    history: LoadHistory
    sample_at: float = 0.0
    report_at: float = 0.0


class LoadReporter:
    """Watches a dispatcher's load for the pool."""

    def __init__(self, dispatcher: Dispatcher, pool: PoolSource) -> None:
        self._dispatcher = dispatcher
        self._pool = pool
        self._gateway_id = uuid.uuid4().hex
        self._watched: dict[str, _Watched] = {}

    async def run(self) -> None:
        """For ever; ends by cancellation."""
        while True:
            try:
                if reports := self._look(time.time()):
                    await self._pool.report(reports)
            except Exception:  # the edge of a task nobody awaits: without it the pool would stop to scale in silence
                logger.exception("the load was not reported")
                await asyncio.sleep(LONGEST_PAUSE_S)  # what is due stays due, and must not be tried without a pause
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(time.time())):
                    await self._dispatcher.starved.wait()

    def _look(self, now: float) -> list[LoadReport]:
        """Sample what is due; returns the reports that are."""
        starved = self._dispatcher.starved.is_set()
        self._dispatcher.starved.clear()
        loads = {model.model_id: (model, load) for model, load in self._dispatcher.loads if _follows_load(model)}
        for model_id in set(self._watched) - set(loads):
            del self._watched[model_id]
        reports = [self._look_at(model, load, now, at_once=starved) for model, load in loads.values()]
        return [report for report in reports if report is not None]

    def _look_at(self, model: ModelView, load: Load, now: float, *, at_once: bool) -> LoadReport | None:
        config = model.entry.deployment.autoscaling_config
        watched = self._watched.get(model.model_id)
        if watched is None:
            history = LoadHistory(self._gateway_id, model.model_id)
            watched = self._watched[model.model_id] = _Watched(history, report_at=now + config.metrics_interval_s)
        is_starved = bool(load.queued) and not load.running
        if now >= watched.report_at or (is_starved and at_once):
            watched.sample_at = now + sampling_interval_s(config)
            watched.report_at = now + (STARVED_INTERVAL_S if is_starved else config.metrics_interval_s)
            return watched.history.report(now, load, config.look_back_period_s)
        if now >= watched.sample_at:
            watched.sample_at = now + sampling_interval_s(config)
            watched.history.record(now, load, config.look_back_period_s)
        return None

    def _pause_s(self, now: float) -> float:
        due = [moment for one in self._watched.values() for moment in (one.sample_at, one.report_at)]
        return min([LONGEST_PAUSE_S, *(max(0.0, moment - now) for moment in due)])


def _follows_load(model: ModelView) -> bool:
    config: AutoscalingConfig = model.entry.deployment.autoscaling_config
    return config.min_replicas != config.max_replicas
