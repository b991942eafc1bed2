"""The Ray actor that serves one model: a thin shell that loads it, runs its engine and opens its channel.

The pool's replica calls it through Ray; gateways talk to its channel directly. The constructor only stores; `start`
does the work, once. An engine that fails takes the process along, so that the manager replaces it: nothing that might
be half alive goes on answering. Importing this module imports neither torch nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from model_registry.changes import Change, change_between
from model_registry.contract import Frame
from model_registry.schema import RegistryEntry
from workers.channel import ChannelServer
from workers.engine.engine import EngineLimits
from workers.engine.loop import EngineLoop
from workers.errors import LoadError
from workers.exchange import Exchange
from workers.group import GroupListener
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel, engine_sizes, resized
from workers.report import ReportBoard, WorkerPhase, WorkerReport
from workers.sources.traffic import FETCHED

logger = logging.getLogger(__name__)

SPARE_REQUESTS: Final = 16
"""Requests a worker admits beyond twice its `max_ongoing_requests`: several gateways may send at the same time."""
STOP_ENGINE_TIMEOUT_S: Final = 5.0
ENGINE_FAILED_EXIT_CODE: Final = 70


class Worker:
    """One replica's process. Every method is called through Ray, on the actor's event loop."""

    def __init__(self, entry: RegistryEntry, replica_id: str, secret: str, host: str) -> None:
        """`host` is the address of this node, on which the channel listens."""
        self._entry = entry
        self._replica_id = replica_id
        self._secret = secret
        self._host = host
        self._loop: asyncio.AbstractEventLoop | None = None
        self._group_listener: GroupListener | None = None
        self._starting: asyncio.Task[str] | None = None
        self._loaded: LoadedModel | None = None
        self._asked_for = entry
        """The entry whose sizes the engine was asked to take last."""
        self._engine_loop: EngineLoop | None = None
        self._exchange: Exchange | None = None
        self._channel: ChannelServer | None = None
        self._board = ReportBoard()
        self._stopped = asyncio.Event()

    async def open_group(self) -> str:
        """Where the other ranks of this replica find it, `host:port`; before `start`, and any number of times."""
        if self._group_listener is None:
            self._group_listener = GroupListener(self._host, self._secret)
        return self._group_listener.address

    async def start(self) -> str:
        """Load the model and serve it; returns the channel's `host:port`. Called again, it joins the first call."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="worker-start")
        return await asyncio.shield(self._starting)

    async def report(self, seen: int | None = None, timeout_s: float = 0.0) -> WorkerReport:
        """The present report; when the caller has `seen` that version, waits up to `timeout_s` for a newer one."""
        report = await self._board.newer_than(seen, timeout_s)
        status = report.status if self._engine_loop is None else self._engine_loop.status()
        return replace(report, status=status, fetched_bytes=FETCHED.num_bytes)

    async def reconfigure(self, entry: RegistryEntry) -> None:
        """Take over the settings and sizes of a changed registry file; loaded weights stay as they are."""
        self._entry = entry
        if self._engine_loop is None or self._exchange is None or self._loaded is None:
            return
        self._engine_loop.limit_input(entry.model.generation.max_input_tokens)
        self._exchange.max_requests = _max_requests(entry)
        if change_between(self._asked_for, entry) is Change.SIZES:
            self._resize(entry, self._engine_loop, self._loaded)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the running ones; whether they all ended within `timeout_s`."""
        if self._exchange is None:
            return True
        self._exchange.refuse_new()
        self._board.tell(phase=WorkerPhase.DRAINING, detail="finishing its requests")
        return await self._exchange.wait_until_idle(timeout_s)

    async def stop(self) -> None:
        """Close the channel and end the engine; the process is the pool's to end."""
        if self._channel is not None:
            await self._channel.stop()
        if self._engine_loop is not None:
            await asyncio.to_thread(self._engine_loop.stop, STOP_ENGINE_TIMEOUT_S)
        self._stopped.set()

    async def wait_until_stopped(self, timeout_s: float) -> bool:
        """Whether `stop` was called within `timeout_s`; a caller that waits here sees the process die at once."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    async def _start(self) -> str:
        self._loop = asyncio.get_running_loop()
        self._board.begin_loading()
        with self._board.failures_told(f"replica {self._replica_id} of {self._entry.model_id}"):
            self._loaded = await asyncio.to_thread(self._load)
            address = await self._serve(self._loaded)
        self._board.tell(
            phase=WorkerPhase.SERVING,
            detail=self._loaded.note,
            address=address,
            max_model_len=self._loaded.max_model_len,
            answer_format=self._loaded.answer_format,
        )
        logger.info("replica %s serves %s at %s", self._replica_id, self._entry.model_id, address)
        return address

    def _load(self) -> LoadedModel:
        """On a thread: the slow part of starting."""
        entry = self._asked_for
        group = self._group_listener.accept(entry.scaling.num_workers) if self._group_listener else None
        return initializer_for(entry, group).load(entry, self._board.progress)

    async def _serve(self, loaded: LoadedModel) -> str:
        """Run the engine and open its channel; returns the address."""
        engine = await asyncio.to_thread(build_engine, self._asked_for, loaded)
        self._engine_loop = EngineLoop(engine, self._on_frame, self._on_crash)
        self._exchange = Exchange(self._engine_loop, max_requests=_max_requests(self._entry))
        self._channel = ChannelServer(self._exchange, self._secret)
        self._engine_loop.start()
        return await self._channel.start(self._host)

    def _resize(self, entry: RegistryEntry, engine_loop: EngineLoop, loaded: LoadedModel) -> None:
        """Have the engine take other sizes when its sequences allow; if it cannot, it goes on as it is."""
        self._asked_for = entry
        self._board.tell(is_resizing=True, refusal="", detail="takes other sizes once its requests allow")
        engine_loop.resize(
            lambda: engine_sizes(entry, resized(loaded, entry.model.generation)),
            lambda limits, error: self._on_event_loop(lambda: self._note_resized(entry, loaded.note, limits, error)),
        )

    def _note_resized(self, entry: RegistryEntry, note: str, limits: EngineLimits, error: LoadError | None) -> None:
        if entry is not self._asked_for:
            return  # asked for others meanwhile, whose end says more
        refusal = f"serves with its earlier sizes: {error}" if error else ""
        self._board.tell(
            is_resizing=False,
            refusal=refusal,
            detail=refusal or note,
            max_model_len=limits.max_model_len,
        )

    def _on_frame(self, frame: Frame) -> None:
        """On the engine thread: one step's outputs."""
        if self._exchange is not None:
            self._on_event_loop(lambda: self._route(frame))

    def _route(self, frame: Frame) -> None:
        if self._exchange is not None:
            self._exchange.route(frame)

    def _on_crash(self, error: BaseException) -> None:
        """On the engine thread, after the engine failed as a whole: end the process at once, so it is replaced."""
        logger.critical("replica %s ends because its engine failed", self._replica_id, exc_info=error)
        logging.shutdown()
        os._exit(ENGINE_FAILED_EXIT_CODE)

    def _on_event_loop(self, call: Callable[[], None]) -> None:
        # The loop is closed only while the process ends; what then comes from a thread is of no use to anybody.
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)


def _max_requests(entry: RegistryEntry) -> int:
    """Requests that a worker admits from all gateways together."""
    return 2 * entry.max_ongoing_requests + SPARE_REQUESTS
