"""A pool without workers: what the gateway's tests put on the other side of its channels.

`ScriptedWorker` does nothing by itself: a test says what it emits, and when it dies. `TalkingWorker` answers every
request with the same words. `StaticPool` shows a fixed view until the test gives it a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gateway.channel import Channel, ChannelClosedError, Connect, InMemoryChannel
from model_registry.contract import (
    Fault,
    FaultKind,
    FinishReason,
    Frame,
    GenerationRequest,
    LoadReport,
    ModelView,
    PoolView,
    ReplicaState,
    ReplicaView,
    SequenceOutput,
    SequenceTiming,
    Usage,
    WorkerStatus,
)
from model_registry.schema import RegistryEntry

MODEL = "aviary/scripted"
SECRET = "of the pool"
TIMING = SequenceTiming(queue_s=0.01, prefill_s=0.02, decode_s=0.03)


def entry(model_id: str = MODEL, *, ongoing: int = 4, queued: int = 8, **generation: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "deployment_config": {"max_ongoing_requests": ongoing, "max_queued_requests": queued},
            "model_config": {
                "model_id": model_id,
                "initialization": {"initializer": {"type": "Echo"}},
                "generation": generation,
            },
        }
    )


def replica(name: str, state: ReplicaState = ReplicaState.READY, detail: str = "") -> ReplicaView:
    """Its address is its name."""
    return ReplicaView(
        replica_id=name, state=state, detail=detail, address=name if state is ReplicaState.READY else None
    )


def pool_view(*models: ModelView, version: int = 1) -> PoolView:
    return PoolView(version=version, secret=SECRET, models=models)


def model_view(*replicas: ReplicaView, of: RegistryEntry | None = None) -> ModelView:
    return ModelView(entry=of or entry(), created=1_700_000_000, replicas=replicas, max_model_len=1024)


class ScriptedWorker:
    """The far end of in-memory channels."""

    def __init__(self) -> None:
        self.batches: list[tuple[GenerationRequest, ...]] = []
        self.aborted: list[str] = []
        self.has_work = asyncio.Event()
        self.is_dead = False
        self.kv_cache_usage = 0.0
        self._channels: list[InMemoryChannel] = []
        self._listeners: list[Callable[[Frame], None]] = []

    @property
    def requests(self) -> list[GenerationRequest]:
        return [request for batch in self.batches for request in batch]

    def channel(self) -> InMemoryChannel:
        channel = InMemoryChannel(self)
        self._channels.append(channel)
        return channel

    def connect(self, on_frame: Callable[[Frame], None]) -> None:
        if self.is_dead:
            raise ChannelClosedError("the worker is dead")
        self._listeners.append(on_frame)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        self.batches.append(tuple(requests))
        self.has_work.set()

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids

    def emit(self, *outputs: SequenceOutput, status: WorkerStatus | None = None) -> None:
        known = WorkerStatus(num_running=len(self.requests), kv_cache_usage=self.kv_cache_usage)
        frame = Frame(outputs=outputs, status=status or known)
        for listener in self._listeners:
            listener(frame)

    def die(self) -> None:
        self.is_dead = True
        for channel in self._channels:
            channel.break_off("the worker died")


class TalkingWorker(ScriptedWorker):
    """Says `pieces` to everybody, one per step, then ends; `fault` takes the place of the end."""

    def __init__(self, pieces: Sequence[str] = ("Hello", ", ", "wörld"), step_s: float = 0.0) -> None:
        super().__init__()
        self.pieces = tuple(pieces)
        self.step_s = step_s
        self.fault: Fault | None = None
        self.talks: dict[str, asyncio.Task[None]] = {}

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        super().submit(requests)
        for request in requests:
            task = asyncio.get_running_loop().create_task(self._talk(request))
            self.talks[request.request_id] = task
            task.add_done_callback(partial(self._forget, request.request_id))

    def abort(self, request_ids: Sequence[str]) -> None:
        super().abort(request_ids)
        for name in request_ids:
            if name in self.talks:
                self.talks[name].cancel()

    def _forget(self, name: str, _: asyncio.Task[None]) -> None:
        del self.talks[name]

    async def _talk(self, request: GenerationRequest) -> None:
        limit = request.sampling.max_tokens or len(self.pieces)
        for piece in self.pieces[:limit]:
            await asyncio.sleep(self.step_s)
            self.emit(piece_of(request, piece))
        if self.fault is not None:
            self.emit(SequenceOutput(request_id=request.request_id, fault=self.fault))
            return
        reason = FinishReason.LENGTH if limit < len(self.pieces) else FinishReason.STOP
        self.emit(end_of(request, reason, num_tokens=min(limit, len(self.pieces))))


def piece_of(request: GenerationRequest, text: str) -> SequenceOutput:
    return SequenceOutput(request_id=request.request_id, text=text, token_ids=(7,))


def end_of(
    request: GenerationRequest, reason: FinishReason = FinishReason.STOP, text: str = "", num_tokens: int = 1
) -> SequenceOutput:
    usage = Usage(prompt_tokens=5, completion_tokens=num_tokens, cached_tokens=2)
    return SequenceOutput(request_id=request.request_id, text=text, finish_reason=reason, usage=usage, timing=TIMING)


def fault_of(request: GenerationRequest, kind: FaultKind, message: str = "no") -> SequenceOutput:
    return SequenceOutput(request_id=request.request_id, fault=Fault(kind=kind, message=message))


def connect_to(workers: Mapping[str, ScriptedWorker]) -> Connect:
    """A way to connect to workers by the names of their replicas."""

    def connect(address: str, secret: str) -> Channel:
        assert secret == SECRET
        return workers[address].channel()

    return connect


class StaticPool:
    """A pool source that says what it is told to."""

    def __init__(self, view: PoolView) -> None:
        self.reports: list[LoadReport] = []
        self._view = view
        self._changed = asyncio.Event()

    async def views(self) -> AsyncIterator[PoolView]:
        while True:
            self._changed.clear()
            yield self._view
            await self._changed.wait()

    def show(self, view: PoolView) -> None:
        self._view = view
        self._changed.set()

    async def report(self, reports: Sequence[LoadReport]) -> None:
        self.reports.extend(reports)

    async def close(self) -> None:
        """Nothing to let go of."""
