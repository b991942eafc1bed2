"""What the record of one request adds to the metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import ApiError, DrainingError, InvalidRequestError, ModelNotFoundError, QueueFullError
from gateway.metrics import UNKNOWN_MODEL, Metrics


def rejections(metrics: Metrics, model: str, reason: str) -> float | None:
    return metrics.registry.get_sample_value("aviary_rejections_total", {"model": model, "reason": reason})


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (UNKNOWN_MODEL, ModelNotFoundError("no/such")),
        ("m", QueueFullError("full", retry_after_s=1)),
        ("m", DrainingError()),
    ],
)
def test_a_rejection_is_counted_once(model: str, error: ApiError) -> None:
    metrics = Metrics(CollectorRegistry())
    record = metrics.request("/v1/completions", 0.0)
    record.model = model
    record.failed(error)
    record.failed(error)
    record.done(499)
    assert rejections(metrics, model, type(error).__name__) == 1


def test_a_request_that_is_wrong_is_no_rejection() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.request("/v1/completions", 0.0).failed(InvalidRequestError("wrong"))
    assert rejections(metrics, UNKNOWN_MODEL, "InvalidRequestError") is None
