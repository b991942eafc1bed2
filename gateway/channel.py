"""The line from this gateway to one worker: batches down, frames up.

Knows the contract's bytes and nothing of requests' lives; `worker_link` owns one. `GrpcChannel` is the real one,
`InMemoryChannel` a deterministic one for tests and demonstrations, which still sends everything through the
contract's encoding. A channel that breaks says so once, by `ChannelClosedError`, and is never used again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final, Protocol

import grpc
import msgspec

from model_registry.contract import (
    CHANNEL_METHOD,
    CONTRACT_VERSION,
    SECRET_METADATA,
    VERSION_METADATA,
    AbortBatch,
    Command,
    Frame,
    GenerationRequest,
    SubmitBatch,
    decode_command,
    decode_frame,
    encode_command,
    encode_frame,
)

CONNECT_TIMEOUT_S: Final = 5.0
KEEPALIVE_S: Final = 5.0
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
MAX_OUTBOX: Final = 10_000
"""Commands not yet taken by the transport; a worker that lets so many pile up is not reading."""


class ChannelClosedError(Exception):
    """The line to the worker is down; one line says why."""


class Channel(Protocol):
    """A line to one worker. `submit` and `abort` never wait and keep their order."""

    async def open(self) -> None:
        """Connects. Raises `ChannelClosedError`."""

    def submit(self, batch: SubmitBatch) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def frames(self) -> AsyncGenerator[Frame, None]:
        """Every frame of the worker in order. Ends only by `ChannelClosedError`."""

    async def close(self) -> None: ...


Connect = Callable[[str, str], Channel]
"""Makes the channel to a worker from its address and the pool's secret, without connecting yet."""

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.enable_http_proxy", 0),
    # A fresh connection per channel: a shared one would bring its old back-off along.
    ("grpc.use_local_subchannel_pool", 1),
)


class GrpcChannel:
    """A bidirectional gRPC stream to the worker at `address`."""

    def __init__(self, address: str, secret: str, *, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        self._address = address
        self._metadata = ((SECRET_METADATA, secret), (VERSION_METADATA, CONTRACT_VERSION))
        self._connect_timeout_s = connect_timeout_s
        self._channel: Any = None
        self._call: Any = None
        self._outbox: deque[Command] = deque()
        self._outgoing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._overrun = False

    async def open(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._channel.channel_ready()
                self._call = self._channel.stream_stream(CHANNEL_METHOD)(metadata=self._metadata)
                await self._shake_hands()
        except TimeoutError:
            await self.close()
            raise ChannelClosedError(
                f"no connection to the worker at {self._address} within {self._connect_timeout_s:g} s"
            ) from None
        self._writer = asyncio.create_task(self._write(), name=f"channel-writer {self._address}")

    def submit(self, batch: SubmitBatch) -> None:
        self._put(batch)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._put(AbortBatch(tuple(request_ids)))

    async def frames(self) -> AsyncGenerator[Frame, None]:
        try:
            async for data in self._call:
                yield decode_frame(data)
        except grpc.aio.AioRpcError as error:
            raise ChannelClosedError(f"worker at {self._address}: {error.code().name}: {error.details()}") from None
        except msgspec.ValidationError as error:
            raise ChannelClosedError(f"worker at {self._address} sent a frame that cannot be read: {error}") from None
        except asyncio.CancelledError:
            if not self._overrun:
                raise
            raise ChannelClosedError(f"worker at {self._address} does not read what it is sent") from None
        raise ChannelClosedError(f"worker at {self._address} closed the channel")

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _shake_hands(self) -> None:
        """A worker that takes the call says at once which contract it speaks; one that refuses only ends the call."""
        greeting = dict(await self._call.initial_metadata() or ())
        if greeting.get(VERSION_METADATA) != CONTRACT_VERSION:
            code, details = await self._call.code(), await self._call.details()
            await self.close()
            raise ChannelClosedError(f"worker at {self._address}: {code.name}: {details}")

    def _put(self, command: Command) -> None:
        if len(self._outbox) >= MAX_OUTBOX:
            self._overrun = True
            self._call.cancel()
            return
        self._outbox.append(command)
        self._outgoing.set()

    async def _write(self) -> None:
        # A broken call shows in `frames`, the one place that reports it.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._outgoing.wait()
                self._outgoing.clear()
                while self._outbox:
                    await self._call.write(encode_command(self._outbox.popleft()))


class InMemoryWorker(Protocol):
    """What an in-memory channel needs of the other side."""

    def connect(self, on_frame: Callable[[Frame], None]) -> None:
        """A gateway is there; every frame for it goes to `on_frame`, from any thread. Raises `ChannelClosedError`."""

    def submit(self, requests: Sequence[GenerationRequest]) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...


class InMemoryChannel:
    """A channel to a worker in the same process: deterministic, and breakable on purpose."""

    def __init__(self, worker: InMemoryWorker) -> None:
        self._worker = worker
        self._inbox: deque[Frame] = deque()
        self._incoming = asyncio.Event()
        self._broken: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        if self._broken is not None:
            raise ChannelClosedError(self._broken)
        self._loop = asyncio.get_running_loop()
        self._worker.connect(self._receive)

    def submit(self, batch: SubmitBatch) -> None:
        self._send(batch)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._send(AbortBatch(tuple(request_ids)))

    async def frames(self) -> AsyncGenerator[Frame, None]:
        while True:
            while self._inbox:
                yield self._inbox.popleft()
            if self._broken is not None:
                raise ChannelClosedError(self._broken)
            await self._incoming.wait()
            self._incoming.clear()

    async def close(self) -> None:
        self.break_off("closed")

    def break_off(self, reason: str) -> None:
        """As if the worker had died: nothing goes down any more, and `frames` ends."""
        self._broken = reason
        self._incoming.set()

    def _send(self, command: Command) -> None:
        if self._broken is not None:
            return
        match decode_command(encode_command(command)):
            case SubmitBatch(requests):
                self._worker.submit(requests)
            case AbortBatch(request_ids):
                self._worker.abort(request_ids)

    def _receive(self, frame: Frame) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, encode_frame(frame))

    def _deliver(self, data: bytes) -> None:
        if self._broken is None:
            self._inbox.append(decode_frame(data))
            self._incoming.set()
