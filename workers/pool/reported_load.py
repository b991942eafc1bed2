"""What the gateways said of the load of one model, added up over all of them and averaged over time. Pure.

A gateway's last report stands until it falls silent; what it says of replicas that do not run any more is left out. The
autoscaler is its only user and says what time it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from model_registry.contract import LoadReport, LoadSeries
from workers.pool.load_curve import LoadCurve

Reports = Iterable[LoadReport]
Select = Callable[[Reports, frozenset[str]], Iterable[LoadSeries]]
"""From all reports, last heard last, and the replicas that run, to the series of which the sum is wanted."""


@dataclass(slots=True)
class _Heard:
    """The last report of a gateway, and when it was first seen by our clock: clocks of gateways may differ."""

    report: LoadReport
    seen_at: float | None = None


class ReportedLoad:
    """The last report of every gateway."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}
        """By gateway, last heard last."""
        self._replica_ids: frozenset[str] = frozenset()
        self._curves: dict[Select, LoadCurve] = {}
        """Sums of the reports and replicas above, made when asked for; none once either has changed."""

    def record(self, report: LoadReport) -> None:
        """Take what a gateway says, unless something later of it is known."""
        heard = self._heard.get(report.gateway_id)
        if heard is None or report.at > heard.report.at:
            self._heard.pop(report.gateway_id, None)
            self._heard[report.gateway_id] = _Heard(report)
            self._curves.clear()

    def forget(self, gateway_id: str) -> None:
        if self._heard.pop(gateway_id, None) is not None:
            self._curves.clear()

    def forget_silent(self, now: float, silence_s: float) -> None:
        """What a gateway said long ago is not true any more: it has died, or cannot reach us."""
        for gateway_id, heard in list(self._heard.items()):
            if heard.seen_at is None:
                heard.seen_at = now
            elif now - heard.seen_at >= silence_s:
                self.forget(gateway_id)

    def count_only(self, replica_ids: frozenset[str]) -> None:
        """These replicas run."""
        if replica_ids != self._replica_ids:
            self._replica_ids = replica_ids
            self._curves.clear()

    def ongoing_requests(self, now: float) -> float:
        """Requests, queued and running."""
        return self._mean(_all_requests, now)

    def ongoing_tokens(self, now: float) -> float:
        """Tokens of those requests, as the gateways estimate them."""
        return self._mean(_all_tokens, now)

    def kv_caches(self, now: float) -> float:
        """How many replicas' KV caches would be full, if what waits needed as much room as what runs."""
        in_use = self._mean(_kv_cache_usage, now)
        running = self._mean(_running_requests, now)
        return in_use * (1 + self._mean(_queued_requests, now) / running) if running else in_use

    def _mean(self, select: Select, now: float) -> float:
        curve = self._curves.get(select)
        if curve is None:
            reports = [heard.report for heard in self._heard.values()]
            curve = self._curves[select] = LoadCurve.total_of(select(reports, self._replica_ids))
        return curve.mean(now)


def _all_requests(reports: Reports, replica_ids: frozenset[str]) -> Iterator[LoadSeries]:
    yield from _queued_requests(reports, replica_ids)
    yield from _running_requests(reports, replica_ids)


def _queued_requests(reports: Reports, _: frozenset[str]) -> Iterator[LoadSeries]:
    return (report.queued for report in reports)


def _running_requests(reports: Reports, replica_ids: frozenset[str]) -> Iterator[LoadSeries]:
    for report in reports:
        yield from (series for replica_id, series in report.running.items() if replica_id in replica_ids)


def _all_tokens(reports: Reports, replica_ids: frozenset[str]) -> Iterator[LoadSeries]:
    for report in reports:
        yield report.queued_tokens
        yield from (series for replica_id, series in report.running_tokens.items() if replica_id in replica_ids)


def _kv_cache_usage(reports: Reports, replica_ids: frozenset[str]) -> Iterable[LoadSeries]:
    """One series per replica: every gateway hears the same from it, so the last heard is enough."""
    last = {replica_id: series for report in reports for replica_id, series in report.kv_cache_usage.items()}
    return (series for replica_id, series in last.items() if replica_id in replica_ids)
