"""Sends the lines of one batch that are about one model, as far as clients leave room, and keeps what comes of them.

One line at a time waits for its turn. What is set aside, or refused because the pool cannot serve just now, goes again;
every other end is the line's result, which is recorded at once. Called by `batch_run`; knows neither HTTP nor workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.batch_lines import answered, body_of, refused
from gateway.batch_store import BatchStore
from gateway.begun_reply import Begins, BegunReply
from gateway.call import Call
from gateway.dispatch import Dispatcher
from gateway.errors import ApiError, DrainingError, OverloadedError, ServerError, WorkerLostError
from gateway.file_store import FileStore
from gateway.line_store import Line, LineResult, LineStore
from gateway.metrics import Metrics
from gateway.middleware.request_id import new_request_id
from gateway.protocol.batches import Batch

logger = logging.getLogger(__name__)

PAGE_LINES: Final = 64
"""Read at a time: a batch may have many more than a gateway should hold."""
PAUSE_S: Final = 0.2
"""After a line had to give way: whoever came is still coming."""
NO_ROOM_PAUSE_S: Final = 5.0
"""Between two looks whether files were deleted, when there is no room for results."""
MAX_LOSSES: Final = 2
"""Of workers under one line, in one run: it may be what kills them."""


class LineOutcome(StrEnum):
    """As metrics tell them."""

    COMPLETED = "completed"
    FAILED = "failed"
    SET_ASIDE = "set_aside"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedParts:
    """What all feeds of a gateway have in common."""

    batches: BatchStore
    lines: LineStore
    files: FileStore
    dispatcher: Dispatcher
    metrics: Metrics
    new_call: Callable[[str], Call]
    """For a request with this id, that nobody waits for."""


class LineFeed:
    """Lines without a result, one after the other, until none is left."""

    def __init__(self, batch: Batch, owner: str, model: str, endpoint: Begins, parts: FeedParts) -> None:
        self._batch = batch
        self._owner = owner
        self._model = model
        self._endpoint = endpoint
        self._parts = parts
        self._page: deque[Line] = deque()
        self._last_number = 0
        self._is_exhausted = False
        self._returned: deque[Line] = deque()
        self._num_in_flight = 0
        self._num_losses: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._paused_until = 0.0

    async def run(self) -> bool:
        """Whether every line has a result; not so when the gateway drains. Raises `StoreError`, `LeaseLostError`."""
        async with asyncio.TaskGroup() as answers:
            while (line := await self._next()) is not None:
                try:
                    await self._send(line, answers)
                except DrainingError:
                    return False
        return not self._returned

    async def _next(self) -> Line | None:
        while True:
            if self._returned:
                return self._returned.popleft()
            if not self._page and not self._is_exhausted:
                await self._read_page()
            if self._page:
                return self._page.popleft()
            if not self._num_in_flight:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _read_page(self) -> None:
        await self._until_there_is_room()
        self._page.extend(
            await self._parts.lines.open_lines(self._batch.id, self._model, after=self._last_number, limit=PAGE_LINES)
        )
        self._is_exhausted = not self._page
        if self._page:
            self._last_number = self._page[-1].number

    async def _until_there_is_room(self) -> None:
        while not await self._parts.files.has_room():
            logger.warning(
                "%s waits: there is no room for more results; delete files or raise AVIARY_FILES_MAX_BYTES",
                self._batch.id,
            )
            await asyncio.sleep(NO_ROOM_PAUSE_S)

    async def _send(self, line: Line, answers: asyncio.TaskGroup) -> None:
        """Queues it, once there is room that no client wants. Raises `DrainingError`."""
        request_id = new_request_id()
        text = await self._parts.files.read(self._batch.input_file_id, line.start, line.num_bytes)
        try:
            await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))
            await self._parts.dispatcher.background_turn(line.model)
            begun = await self._endpoint.begin(self._parts.new_call(request_id), body_of(text))
        except ApiError as error:
            await self._take_error(line, request_id, error)
        else:
            self._num_in_flight += 1
            answer = answers.create_task(self._answer(line, request_id, begun), name=f"answer {request_id}")
            # A task that is cancelled before it began runs none of its own code.
            answer.add_done_callback(lambda _: self._ended(begun))

    def _ended(self, begun: BegunReply) -> None:
        begun.close()
        self._num_in_flight -= 1
        self._changed.set()

    async def _answer(self, line: Line, request_id: str, begun: BegunReply) -> None:
        try:
            body = await begun.whole()
        except DrainingError:
            self._put_back(line)
        except ApiError as error:
            await self._take_error(line, request_id, error)
        except Exception:  # the edge of a request: a client's would get a plain 500, and so does the line
            logger.exception("request %s of %s failed", request_id, self._batch.id)
            await self._record(refused(line, request_id, ServerError()))
        else:
            await self._record(answered(line, request_id, body))

    async def _take_error(self, line: Line, request_id: str, error: ApiError) -> None:
        """Either the line's result, or a reason to try again later. Raises `DrainingError`."""
        if isinstance(error, DrainingError):
            raise error
        if isinstance(error, OverloadedError) or self._may_be_tried_again(line, error):
            self._put_back(line)
        else:
            await self._record(refused(line, request_id, error))

    def _may_be_tried_again(self, line: Line, error: ApiError) -> bool:
        """Nobody has seen what a worker had said before it was lost."""
        if not isinstance(error, WorkerLostError):
            return False
        self._num_losses[line.number] = self._num_losses.get(line.number, 0) + 1
        return self._num_losses[line.number] < MAX_LOSSES

    def _put_back(self, line: Line) -> None:
        self._paused_until = time.monotonic() + PAUSE_S
        self._returned.append(line)
        self._parts.metrics.batch_lines(LineOutcome.SET_ASIDE)

    async def _record(self, result: LineResult) -> None:
        await self._parts.lines.record(self._batch.id, self._owner, result)
        self._parts.metrics.batch_lines(LineOutcome.COMPLETED if result.is_success else LineOutcome.FAILED)
