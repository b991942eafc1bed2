"""The worker's side of the channel: a gRPC server with one method, a stream of commands in, a stream of frames out.

Checks who calls (the pool's secret, in constant time) and which contract it speaks, then connects the stream to the
exchange. A frame leaves as soon as there is one; an idle connection gets a bare one every second as a sign of life.
Knows bytes and connections, nothing of engines; the worker owns it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import grpc
import msgspec

from model_registry.contract import (
    CHANNEL_METHOD,
    CONTRACT_VERSION,
    SECRET_METADATA,
    VERSION_METADATA,
    AbortBatch,
    Fault,
    FaultKind,
    Frame,
    SequenceOutput,
    decode_command,
    encode_frame,
)
from workers.exchange import Exchange
from workers.outbox import Outbox

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0
KEEPALIVE_S: Final = 5.0
LEASE_S: Final = 2 * KEEPALIVE_S
"""A gateway that hangs, or whose packets are lost, answers no ping; after so long its connection and requests end."""
MIN_CLIENT_PING_S: Final = 1.0
"""Clients that ping more often than this are cut off; gateways do every 5 s."""
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""As gateways have it: a larger message ends the connection, and with it all requests on it."""
MAX_CONNECTIONS: Final = 256
MAX_PENDING_OUTPUTS: Final = 4096
"""A connection that does not read so many outputs is not read from either, until it does."""

_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1000)),
    # The timeout above alone leaves a stopped gateway its connection for a minute, gRPC's default for this one.
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_CLIENT_PING_S * 1000)),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two workers that drew the same port must not share it silently.
    ("grpc.so_reuseport", 0),
)


class ChannelServer:
    """Serves any number of gateways, each over one stream."""

    def __init__(self, exchange: Exchange, secret: str) -> None:
        self._exchange = exchange
        self._secret = secret.encode()
        self._server: Any = None

    async def start(self, host: str) -> str:
        """Binds a free port of `host`; returns `host:port`."""
        handler = grpc.stream_stream_rpc_method_handler(self._connect)
        service, _, method = CHANNEL_METHOD.lstrip("/").partition("/")
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CONNECTIONS)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = self._server.add_insecure_port(f"{host}:0")
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Closes every connection, which aborts its requests."""
        if self._server is not None:
            await self._server.stop(None)

    async def _connect(self, commands: AsyncIterator[bytes], context: Any) -> None:
        """One gateway's connection, from its first byte to its last."""
        await self._admit(context)
        await context.send_initial_metadata(((VERSION_METADATA, CONTRACT_VERSION),))
        connection = self._exchange.connect()
        logger.info("gateway %s connected", context.peer())
        tasks = {
            asyncio.create_task(self._read(commands, connection), name="channel-reader"),
            asyncio.create_task(self._write(connection, context), name="channel-writer"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._exchange.disconnect(connection)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            logger.info("gateway %s is gone", context.peer())
        errors = [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
        if errors:
            await self._close(context, errors[0])

    async def _admit(self, context: Any) -> None:
        """Ends the call unless the caller knows the secret and speaks this contract."""
        metadata = {str(key): value for key, value in context.invocation_metadata()}
        secret = metadata.get(SECRET_METADATA, "")
        given = secret if isinstance(secret, bytes) else secret.encode()
        if not hmac.compare_digest(given, self._secret):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the pool's secret is missing or wrong")
        version = metadata.get(VERSION_METADATA)
        if version != CONTRACT_VERSION:
            message = f"this worker speaks contract {CONTRACT_VERSION}, the gateway {version}; run the same release"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)

    async def _read(self, commands: AsyncIterator[bytes], connection: Outbox) -> None:
        async for data in commands:
            self._exchange.handle(connection, decode_command(data))
            if len(connection) >= MAX_PENDING_OUTPUTS:
                await connection.wait_until_written()

    async def _write(self, connection: Outbox, context: Any) -> None:
        while True:
            outputs = await connection.take(HEARTBEAT_S)
            for data in self._encoded(connection, outputs):
                await context.write(data)
            connection.note_written()

    def _encoded(self, connection: Outbox, outputs: tuple[SequenceOutput, ...]) -> Iterator[bytes]:
        """Outputs as one frame, or as several that fit. One that does not fit by itself is a fault of its request."""
        data = encode_frame(Frame(outputs=outputs, status=self._exchange.status()))
        if len(data) <= MAX_MESSAGE_BYTES:
            yield data
        elif len(outputs) > 1:
            middle = len(outputs) // 2
            yield from self._encoded(connection, outputs[:middle])
            yield from self._encoded(connection, outputs[middle:])
        else:
            request_id = outputs[0].request_id
            self._exchange.handle(connection, AbortBatch((request_id,)))  # it may still run
            yield from self._encoded(connection, (_too_large(request_id, len(data)),))

    async def _close(self, context: Any, error: BaseException) -> None:
        if isinstance(error, msgspec.DecodeError):
            logger.warning("gateway %s sent what is no command: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a command of contract {CONTRACT_VERSION}")
        if not isinstance(error, grpc.RpcError):
            logger.error("the connection of gateway %s failed", context.peer(), exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, "the connection failed; connect again")


def _too_large(request_id: str, num_bytes: int) -> SequenceOutput:
    message = (
        f"The answer takes {num_bytes} bytes; at most {MAX_MESSAGE_BYTES} can be told at once. "
        "Send a shorter prompt, or ask for less about each token: no token strings, fewer logprobs."
    )
    return SequenceOutput(
        request_id=request_id, fault=Fault(kind=FaultKind.INVALID_REQUEST, message=message, param="prompt")
    )
