"""One replica as this gateway uses it: its channel, kept open, and the tickets it is working on.

Reconnects with back-off while its replica is wanted. Decides nothing about tickets: what arrives, comes up or goes
down is told to the dispatcher, its only caller.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from gateway.channel import Channel, ChannelClosedError, Connect
from gateway.ticket import Ticket
from model_registry.contract import Frame, GenerationRequest, SubmitBatch, WorkerStatus

logger = logging.getLogger(__name__)

FIRST_BACK_OFF_S: Final = 0.1
MAX_BACK_OFF_S: Final = 5.0
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
"""Far below what a channel carries at once: a batch that is too large for it would end the requests of everybody."""
SILENCE_LIMIT_S: Final = 10.0
"""Workers send a frame every second, even when idle."""


class LinkListener(Protocol):
    """What a link tells its owner."""

    def link_up(self, link: WorkerLink) -> None: ...

    def link_down(self, link: WorkerLink, lost: Sequence[Ticket]) -> None: ...

    def link_frame(self, link: WorkerLink, frame: Frame) -> None: ...


class WorkerLink:
    """Line to the replica `replica_id` of a model."""

    def __init__(
        self, model_id: str, replica_id: str, address: str, secret: str, connect: Connect, listener: LinkListener
    ) -> None:
        self.model_id = model_id
        self.replica_id = replica_id
        self.address = address
        self.secret = secret
        self.in_flight: dict[str, Ticket] = {}
        self.background: dict[str, Ticket] = {}
        """Those of them that nobody waits for."""
        self.is_connected = False
        self.is_full = False
        """The worker refused a ticket for lack of room; cleared by its next frame, and by what makes room."""
        self.is_retired = False
        """The replica gets nothing new, and is not connected to again."""
        self.kv_cache_usage = 0.0
        """As its last frame said."""
        self.num_foreign = 0
        """Sequences that it had from other gateways then; too few while ours are on their way to it."""
        self._num_tokens_left: int | None = None
        """None: to be counted again, since something has changed."""
        self._has_frame = False
        """The present connection has shown that the worker works, not only that it listens."""
        self._connect = connect
        self._listener = listener
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"worker-link {self.replica_id}")

    def retire(self) -> None:
        """Nothing new goes to the replica; it is closed once what it works on has ended."""
        self.is_retired = True

    async def close(self) -> None:
        self.is_retired = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def takes_work(self) -> bool:
        return self.is_connected and not self.is_retired

    def room(self, max_ongoing_requests: int) -> int:
        """Tickets that may be sent now."""
        usable = self.takes_work and not self.is_full
        return max(0, max_ongoing_requests - len(self.in_flight)) if usable else 0

    def num_over(self, slots: int) -> int:
        """Sequences that the replica has beyond so many that it can run, from all gateways together."""
        return max(0, len(self.in_flight) + self.num_foreign - slots)

    @property
    def num_tokens_left(self) -> int:
        """About what the replica still has to compute for this gateway."""
        if self._num_tokens_left is None:
            self._num_tokens_left = sum(ticket.num_tokens_left for ticket in self.in_flight.values())
        return self._num_tokens_left

    def send(self, tickets: Sequence[Ticket]) -> None:
        """All tickets in one batch, or in several when they are large."""
        if self._channel is None:
            raise ChannelClosedError(f"replica {self.replica_id} is not connected")
        for ticket in tickets:
            self.in_flight[ticket.request.request_id] = ticket
            if ticket.is_background:
                self.background[ticket.request.request_id] = ticket
        self._num_tokens_left = None
        for batch in _batches(tickets):
            self._channel.submit(batch)

    def release(self, ticket: Ticket) -> None:
        """Forgets the ticket, if it is here."""
        self.in_flight.pop(ticket.request.request_id, None)
        self.background.pop(ticket.request.request_id, None)
        self._num_tokens_left = None

    def abort(self, request_ids: Sequence[str]) -> None:
        if self._channel is not None and self.is_connected:
            self._channel.abort(request_ids)
            self.is_full = False

    async def _run(self) -> None:
        back_off_s = FIRST_BACK_OFF_S
        while True:
            channel = self._connect(self.address, self.secret)
            self._has_frame = False
            try:
                await channel.open()
                await self._follow(channel)
            except ChannelClosedError as error:
                logger.warning("replica %s of %s: %s", self.replica_id, self.model_id, error)
            except Exception:  # the edge of a task nobody awaits: the replica must not be lost to a bug of ours
                logger.exception("the link to replica %s of %s failed", self.replica_id, self.model_id)
            finally:
                self._go_down()
                await channel.close()
            if self.is_retired:
                return
            if self._has_frame:
                back_off_s = FIRST_BACK_OFF_S
            # Jitter, so that many gateways do not come back to a worker in step.
            await asyncio.sleep(back_off_s * random.uniform(0.5, 1.0))  # noqa: S311
            back_off_s = min(2 * back_off_s, MAX_BACK_OFF_S)

    async def _follow(self, channel: Channel) -> None:
        self._channel = channel
        self.is_connected = True
        self.is_full = False
        self._note_status(WorkerStatus())
        logger.info("replica %s of %s is connected", self.replica_id, self.model_id)
        self._listener.link_up(self)
        async with aclosing(channel.frames()) as frames:
            while True:
                frame = await self._next(frames)
                self.is_full = False
                self._has_frame = True
                self._listener.link_frame(self, frame)
                self._note_status(frame.status)

    def _note_status(self, status: WorkerStatus) -> None:
        self.kv_cache_usage = status.kv_cache_usage
        self._num_tokens_left = None
        self.num_foreign = max(status.num_running + status.num_waiting - len(self.in_flight), 0)

    @staticmethod
    async def _next(frames: AsyncGenerator[Frame, None]) -> Frame:
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                return await anext(frames)
        except TimeoutError:
            raise ChannelClosedError(f"no sign of life for {SILENCE_LIMIT_S:g} s") from None

    def _go_down(self) -> None:
        """Whatever the worker had is lost with the channel."""
        self._channel = None
        if not self.is_connected:
            return
        self.is_connected = False
        lost = list(self.in_flight.values())
        self.in_flight.clear()
        self.background.clear()
        self._listener.link_down(self, lost)


def _batches(tickets: Sequence[Ticket]) -> Iterator[SubmitBatch]:
    """The tickets in order, in as few batches as the limit allows; a ticket larger than the limit goes alone."""
    requests: list[GenerationRequest] = []
    num_bytes = 0
    for ticket in tickets:
        if requests and num_bytes + ticket.num_bytes > MAX_BATCH_BYTES:
            yield SubmitBatch(tuple(requests))
            requests, num_bytes = [], 0
        requests.append(ticket.request)
        num_bytes += ticket.num_bytes
    if requests:
        yield SubmitBatch(tuple(requests))
