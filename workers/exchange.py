"""Which gateway connection each unfinished request belongs to: the worker's admission and its way back.

Requests come in per connection, are refused here or handed to the engine, and every output finds the connection that
asked for it. A connection that ends takes its requests with it. Where several connections want more than the worker
admits, each gets its share. All methods run on one event loop; the engine's frames reach it through
`call_soon_threadsafe`. Knows neither gRPC nor Ray; the channel server and the worker call it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from model_registry.contract import (
    AbortBatch,
    Command,
    Fault,
    FaultKind,
    Frame,
    GenerationRequest,
    SequenceOutput,
    SubmitBatch,
    WorkerStatus,
)
from workers.outbox import Outbox

CLAIM_S: Final = 2.0
"""How long a connection that was refused for lack of room has a claim to its share: it gets a frame every second, and
tries again at each, if it still wants to."""


class RequestSink(Protocol):
    """What the exchange needs of an engine; `EngineLoop` is one. Callable from the event loop: nothing waits."""

    def submit(self, requests: Iterable[GenerationRequest]) -> None: ...

    def abort(self, request_ids: Iterable[str]) -> None: ...

    def status(self) -> WorkerStatus: ...


class Exchange:
    """Admits requests, routes outputs, and knows when nothing is left to do."""

    def __init__(self, engine: RequestSink, *, max_requests: int) -> None:
        self.max_requests = max_requests
        """How many submitted requests may be unfinished over all connections."""
        self._engine = engine
        self._owners: dict[str, Outbox] = {}
        self._connections: set[Outbox] = set()
        self._refused_at: dict[Outbox, float] = {}
        """When a connection was last refused for lack of room."""
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_unfinished(self) -> int:
        return len(self._owners)

    def status(self) -> WorkerStatus:
        return self._engine.status()

    def connect(self) -> Outbox:
        """A new connection's outbox, which is also its identity here."""
        connection = Outbox()
        self._connections.add(connection)
        return connection

    def disconnect(self, connection: Outbox) -> None:
        """The connection is gone; so are its requests."""
        self._abort([request_id for request_id, owner in self._owners.items() if owner is connection])
        self._connections.discard(connection)
        self._refused_at.pop(connection, None)
        connection.close()

    def handle(self, connection: Outbox, command: Command) -> None:
        """Do what a connection asks for."""
        match command:
            case SubmitBatch(requests):
                self._submit(connection, requests)
            case AbortBatch(request_ids):
                owned = [request_id for request_id in request_ids if self._owners.get(request_id) is connection]
                self._abort(owned)
                connection.discard(owned)

    def route(self, frame: Frame) -> None:
        """Put each output of an engine step where its request came from; nobody waits for the rest."""
        routed: dict[int, tuple[Outbox, list[SequenceOutput]]] = {}
        for output in frame.outputs:
            owner = self._owners.get(output.request_id)
            if owner is None:
                continue
            routed.setdefault(id(owner), (owner, []))[1].append(output)
            if output.is_final:
                self._forget([output.request_id])
        for owner, outputs in routed.values():
            owner.put(outputs)
        self._tell_of_room()

    def refuse_new(self) -> None:
        """From now on every new request is refused as `WORKER_DRAINING`."""
        self._draining = True

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether every request had ended, and its last output was written, within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                for connection in tuple(self._connections):
                    await connection.wait_until_written()
        except TimeoutError:
            return False
        return True

    def _submit(self, connection: Outbox, requests: Iterable[GenerationRequest]) -> None:
        accepted: list[GenerationRequest] = []
        for request in requests:
            fault = self._refusal(connection, request)
            if fault is None:
                self._owners[request.request_id] = connection
                self._refused_at.pop(connection, None)
                accepted.append(request)
                continue
            if self._owners.get(request.request_id) is connection:
                # To its gateway both carry one id, which the fault below ends: nothing may run on unseen.
                accepted = [other for other in accepted if other.request_id != request.request_id]
                self._abort([request.request_id])
            connection.put([SequenceOutput(request_id=request.request_id, fault=fault)])
        if accepted:
            self._idle.clear()
            self._engine.submit(accepted)

    def _refusal(self, connection: Outbox, request: GenerationRequest) -> Fault | None:
        if self._draining:
            return Fault(kind=FaultKind.WORKER_DRAINING, message="This worker is shutting down; try another one.")
        if request.request_id in self._owners:
            message = f"Request id {request.request_id} is in use; every request needs an id of its own."
            return Fault(kind=FaultKind.INVALID_REQUEST, message=message)
        if not self._has_room_for(connection):
            self._refused_at[connection] = time.monotonic()
            message = f"This worker already has {self.max_requests} unfinished requests; try another one, or later."
            return Fault(kind=FaultKind.WORKER_FULL, message=message)
        return None

    def _has_room_for(self, connection: Outbox) -> bool:
        """While others wait for room, a connection that has its share gets no more.

        Otherwise each would fill again whatever it freed itself, and a gateway that came late would never get in.
        """
        if len(self._owners) >= self.max_requests:
            return False
        claims = self._claims() - {connection}
        if not claims:
            return True
        held = Counter(self._owners.values())
        share = self.max_requests // len(held.keys() | claims | {connection})
        return held[connection] < max(1, share)

    def _claims(self) -> set[Outbox]:
        """Connections that wait for room."""
        since = time.monotonic() - CLAIM_S
        return {connection for connection, refused_at in self._refused_at.items() if refused_at > since}

    def _tell_of_room(self) -> None:
        if len(self._owners) < self.max_requests:
            for connection in self._claims():
                connection.show_life()

    def _abort(self, request_ids: list[str]) -> None:
        if request_ids:
            self._engine.abort(request_ids)
            self._forget(request_ids)
            self._tell_of_room()

    def _forget(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            del self._owners[request_id]
        if not self._owners:
            self._idle.set()
