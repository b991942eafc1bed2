"""What the record of one request adds to the metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from gateway.errors import ApiError, DrainingError, InvalidRequestError, ModelNotFoundError, QueueFullError
from gateway.metrics import UNKNOWN_MODEL, Metrics
from model_registry.contract import ModelView, ReplicaState, ReplicaView, WorkerStatus
from model_registry.schema import RegistryEntry


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


def view(**fetched_bytes: int) -> ModelView:
    model = {"model_id": "m", "initialization": {"initializer": {"type": "Echo"}}}
    replicas = (
        ReplicaView(replica_id=name, state=ReplicaState.STARTING, fetched_bytes=num_bytes)
        for name, num_bytes in fetched_bytes.items()
    )
    entry = RegistryEntry.model_validate({"model_config": model})
    return ModelView(entry=entry, created=0, replicas=tuple(replicas))


def test_what_each_replica_fetched_is_shown_while_it_is_there() -> None:
    metrics = Metrics(CollectorRegistry())

    def fetched_bytes(replica: str) -> float | None:
        return metrics.registry.get_sample_value("aviary_worker_fetched_bytes", {"model": "m", "replica": replica})

    metrics.replicas(view(a=7, b=8))
    assert (fetched_bytes("a"), fetched_bytes("b")) == (7, 8)
    metrics.replicas(view(b=9))
    assert (fetched_bytes("a"), fetched_bytes("b")) == (None, 9)
    metrics.forget_model("m")
    assert fetched_bytes("b") is None


def test_the_present_load_is_asked_for_at_every_scrape_and_ends_with_its_model() -> None:
    metrics, queued = Metrics(CollectorRegistry()), [3]
    metrics.watch_model("m", lambda: 2, lambda: queued[0])

    def load() -> tuple[float | None, float | None]:
        shown = metrics.scrape()
        names = ("aviary_requests_running", "aviary_requests_queued")
        running, waiting = (shown.get_sample_value(name, {"model": "m"}) for name in names)
        return running, waiting

    assert load() == (2, 3)
    queued[0] = 0
    assert load() == (2, 0)
    metrics.forget_model("m")
    assert load() == (None, None)


def test_a_replica_that_is_gone_has_no_series() -> None:
    metrics = Metrics(CollectorRegistry())

    def steps(replica: str) -> float | None:
        return metrics.scrape().get_sample_value("aviary_worker_steps", {"model": "m", "replica": replica})

    metrics.worker("m", "a", WorkerStatus(num_steps=4))
    metrics.worker("m", "b", WorkerStatus(num_steps=5))
    metrics.forget_worker("m", "a")
    assert (steps("a"), steps("b")) == (None, 5)
