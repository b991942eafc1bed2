"""A gauge of something that every gateway process sees in full by itself, such as a replica's load.

It stays in its process, so it is never added up over the processes of one address, and its series end with what they
describe; prometheus-client's own gauges can do neither once several processes share their values. Declared in
`metrics`, its only user.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily


class LocalGauge:
    """A collector of one series per combination of labels."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._labelnames = labels
        self._values: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value

    def forget(self, *first_labels: str) -> None:
        """Ends the series whose labels begin with these."""
        count = len(first_labels)
        self._values = {labels: value for labels, value in self._values.items() if labels[:count] != first_labels}

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=self._labelnames)
        for labels, value in tuple(self._values.items()):  # a scrape reads on a thread
            family.add_metric(labels, value)
        yield family
