"""Every Prometheus series of the gateway, declared in one place on the registry that is handed in.

Counters, histograms and the load of this gateway add up over the processes of one address (`shared_metrics`); what
each process sees of the whole pool is shown as it sees it (`local_gauge`). Labels come from the model registry, the
pool and fixed enums only, never from what a client wrote. Latency buckets are vLLM's, so that boards can be shared.
Knows the contract's types; everybody in the gateway may report here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gateway.errors import ApiError, ModelNotFoundError, OverloadedError
from gateway.local_gauge import LocalGauge
from gateway.routing import RoutingReason
from gateway.shared_metrics import is_shared, shown_with
from model_registry.contract import FinishReason, ModelView, ReplicaState, SequenceTiming, Usage, WorkerStatus

UNKNOWN_MODEL: Final = "unknown"
"""Label of requests that named no deployed model."""
PUBLISH_S: Final = 0.5
"""How old another process's share of the present load may be in a scrape."""

_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_INTER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """All series. Reading aid: the names below are what `/metrics` shows, with the prefix `aviary_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._declare_requests(registry)
        self._declare_latencies(registry)
        pool = CollectorRegistry()
        self._declare_pool(pool)
        registry.register(pool)
        self._is_shared = is_shared()
        self._shown = shown_with(pool) if self._is_shared else registry
        self._loads: dict[str, tuple[Callable[[], int], Callable[[], int]]] = {}
        self._publication: asyncio.TimerHandle | None = None

    def scrape(self) -> CollectorRegistry:
        """What a scrape of this process shows: of itself, or of all processes that share its address."""
        self._publish_loads()
        return self._shown

    def _declare_requests(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace="aviary", registry=registry)

        self._requests = counter(
            "requests", "Requests answered; finish_reason is the first choice's.",
            "model", "endpoint", "status", "finish_reason",
        )  # fmt: skip
        self._rejections = counter(
            "rejections", "Requests refused for lack of the model, of room or of a worker.", "model", "reason"
        )
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of finished requests.", "model")
        self._generation_tokens = counter("generation_tokens", "Tokens received from workers for somebody.", "model")
        self._cached_tokens = counter("cached_tokens", "Prompt tokens that came from the prefix cache.", "model")
        self._wasted_tokens = counter("wasted_tokens", "Tokens received after nobody wanted them any more.", "model")
        self._routed = counter(
            "routing_decisions", "Sequences sent to a replica, by why to that one.", "model", "reason"
        )
        self._batch_lines = counter(
            "batch_lines", "Requests of batches, by what became of them; `set_aside` ones come again.", "outcome"
        )
        self._running = Gauge(
            "requests_running", "Sequences that workers have from this gateway.", ("model",),
            namespace="aviary", registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._queued = Gauge(
            "requests_queued", "Sequences that wait in this gateway for a worker.", ("model",),
            namespace="aviary", registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip

    def _declare_latencies(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, namespace="aviary", registry=registry, buckets=buckets)

        self._first_token = histogram(
            "time_to_first_token_seconds", "From the request's arrival to a sequence's first output.",
            _FIRST_TOKEN, "model",
        )  # fmt: skip
        self._inter_token = histogram(
            "inter_token_latency_seconds", "Between the tokens of a sequence.", _INTER_TOKEN, "model"
        )
        self._e2e = histogram(
            "e2e_request_latency_seconds", "From the request's arrival to the end of its answer.",
            _REQUEST, "model", "endpoint",
        )  # fmt: skip
        self._queue_time = histogram(
            "request_queue_time_seconds", "Waiting of a sequence, in the gateway and in the worker.", _REQUEST, "model"
        )
        self._prefill_time = histogram(
            "request_prefill_time_seconds", "From a sequence's first step to its first token.", _REQUEST, "model"
        )
        self._decode_time = histogram(
            "request_decode_time_seconds", "From a sequence's first to its last token.", _REQUEST, "model"
        )
        self._overhead = histogram(
            "gateway_overhead_seconds",
            "What the gateway adds to the first token: before the request is queued, and after its output came.",
            _OVERHEAD, "endpoint",
        )  # fmt: skip

    def _declare_pool(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> LocalGauge:
            return LocalGauge(f"aviary_{name}", text, labels, registry)

        self._replicas = gauge("replicas", "Replicas by state.", "model", "state")
        self._batches = gauge("batches", "Batches of /v1/batches, by state.", "state")
        self._fetched_bytes = gauge(
            "worker_fetched_bytes", "Bytes of weights a replica has fetched since its start.", "model", "replica"
        )
        self._workers: dict[str, LocalGauge] = {
            "num_running": gauge("worker_requests_running", "Sequences a replica runs.", "model", "replica"),
            "num_waiting": gauge("worker_requests_waiting", "Sequences that wait in it.", "model", "replica"),
            "num_steps": gauge("worker_steps", "Engine steps since its start.", "model", "replica"),
            "step_batch_size": gauge("worker_step_batch_size", "Sequences in its last step.", "model", "replica"),
            "kv_cache_usage": gauge("worker_kv_cache_usage", "Share of its KV cache in use.", "model", "replica"),
            "num_preemptions": gauge("worker_preemptions", "Preemptions since its start.", "model", "replica"),
        }

    # Requests

    def request(self, endpoint: str, received_at: float) -> RequestRecord:
        """Starts the record of one HTTP request for generation."""
        return RequestRecord(self, endpoint, received_at)

    def request_done(
        self, model: str, endpoint: str, status: int, finish_reason: FinishReason | None, latency_s: float
    ) -> None:
        self._requests.labels(model, endpoint, str(status), finish_reason.value if finish_reason else "none").inc()
        self._e2e.labels(model, endpoint).observe(latency_s)

    def overhead(self, endpoint: str, seconds: float) -> None:
        self._overhead.labels(endpoint).observe(seconds)

    def rejected(self, model: str, reason: str) -> None:
        """`reason` is the name of one of the gateway's errors, never a client's text."""
        self._rejections.labels(model, reason).inc()

    # Sequences

    def first_output(self, model: str, seconds: float) -> None:
        self._first_token.labels(model).observe(seconds)

    def later_output(self, model: str, seconds: float, num_tokens: int) -> None:
        if num_tokens:
            self._inter_token.labels(model).observe(seconds / num_tokens)

    def tokens(self, model: str, num_tokens: int) -> None:
        self._generation_tokens.labels(model).inc(num_tokens)

    def routed(self, model: str, reason: RoutingReason) -> None:
        self._routed.labels(model, reason.value).inc()

    def tokens_wasted(self, model: str, num_tokens: int) -> None:
        self._wasted_tokens.labels(model).inc(num_tokens)

    def prompt(self, model: str, usage: Usage) -> None:
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._cached_tokens.labels(model).inc(usage.cached_tokens)

    def timing(self, model: str, waited_s: float, timing: SequenceTiming) -> None:
        self._queue_time.labels(model).observe(waited_s + timing.queue_s)
        self._prefill_time.labels(model).observe(timing.prefill_s)
        self._decode_time.labels(model).observe(timing.decode_s)

    # Batches

    def batch_lines(self, outcome: str, count: int = 1) -> None:
        """`outcome` is one of `batch_run.LineOutcome`."""
        self._batch_lines.labels(outcome).inc(count)

    def batches(self, state: str, count: int) -> None:
        """All that this gateway's folder holds, whoever runs them."""
        self._batches.set(count, state)

    # Pool

    def watch_model(self, model: str, num_running: Callable[[], int], num_queued: Callable[[], int]) -> None:
        """Both numbers are asked for at every scrape, so that they cannot drift."""
        self._loads[model] = (num_running, num_queued)

    def load_changed(self) -> None:
        """Either number of some model may have changed: where a scrape of another process shows it, that learns it."""
        if self._is_shared and self._publication is None:
            self._publication = asyncio.get_running_loop().call_later(PUBLISH_S, self._publish_loads)

    def _publish_loads(self) -> None:
        if self._publication is not None:
            self._publication.cancel()
            self._publication = None
        for model, (num_running, num_queued) in self._loads.items():
            self._running.labels(model).set(num_running())
            self._queued.labels(model).set(num_queued())

    def replicas(self, view: ModelView) -> None:
        for state in ReplicaState:
            self._replicas.set(sum(one.state is state for one in view.replicas), view.model_id, state.value)
        self._fetched_bytes.forget(view.model_id)
        for replica in view.replicas:
            self._fetched_bytes.set(replica.fetched_bytes, view.model_id, replica.replica_id)

    def worker(self, model: str, replica: str, status: WorkerStatus) -> None:
        for name, gauge in self._workers.items():
            gauge.set(getattr(status, name), model, replica)

    def forget_worker(self, model: str, replica: str) -> None:
        for gauge in self._workers.values():
            gauge.forget(model, replica)

    def forget_model(self, model: str) -> None:
        self._loads.pop(model, None)
        for load in (self._running, self._queued):
            # Shared values cannot be removed; a model that is gone then shows that it has nothing.
            load.labels(model).set(0)
            if not self._is_shared:
                load.remove(model)
        for gauge in (self._replicas, self._fetched_bytes):
            gauge.forget(model)


class RequestRecord:
    """The life of one HTTP request, told once at its end."""

    def __init__(self, metrics: Metrics, endpoint: str, received_at: float) -> None:
        self.model = UNKNOWN_MODEL
        self._metrics = metrics
        self._endpoint = endpoint
        self._received_at = received_at
        self._is_done = False

    def failed(self, error: ApiError) -> None:
        """The same for a request that ends with an error; the one place where rejections are counted."""
        if not self._is_done and isinstance(error, OverloadedError | ModelNotFoundError):
            self._metrics.rejected(self.model, type(error).__name__)
        self.done(error.status)

    def done(self, status: int, finish_reason: FinishReason | None = None) -> None:
        """Only the first call counts."""
        if not self._is_done:
            self._is_done = True
            latency_s = time.monotonic() - self._received_at
            self._metrics.request_done(self.model, self._endpoint, status, finish_reason, latency_s)
