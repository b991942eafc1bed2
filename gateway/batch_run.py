"""One batch from wherever it stands to its end: check its input, answer its lines, write its files.

Whoever runs it may die at any moment: what it came to is in the store, and the next one goes on from there. Called by
`batch_runner`, which holds the lease; knows neither HTTP nor workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from gateway.batch_lines import CANCELLED, EXPIRED, WrongInputError, read_input, unanswered
from gateway.batch_states import ForbiddenChangeError
from gateway.batch_store import LeaseLostError, Outcome
from gateway.begun_reply import Begins
from gateway.errors import ModelNotFoundError
from gateway.line_feed import FeedParts, LineFeed, LineOutcome
from gateway.line_store import Line
from gateway.middleware.request_id import new_request_id
from gateway.protocol.batches import Batch, BatchError, BatchErrors, BatchStatus
from gateway.protocol.files import FileObject

logger = logging.getLogger(__name__)

_PAGE: Final = 200
_WRITTEN_LINES: Final = 5_000
"""Into the store at a time."""


class BatchRun:
    """Of one batch, by one owner."""

    def __init__(
        self, batch: Batch, owner: str, endpoints: Mapping[str, Begins], parts: FeedParts, *, max_line_bytes: int
    ) -> None:
        """`endpoints` by their paths."""
        self.batch_id = batch.id
        self._owner = owner
        self._endpoints = endpoints
        self._parts = parts
        self._max_line_bytes = max_line_bytes
        self._is_cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Its client wants no more: what is not answered stays so."""
        self._is_cancelled.set()

    async def run(self) -> None:
        """To its end, or until the gateway drains. Raises `StoreError`, `LeaseLostError`, alone or in a group."""
        is_going_on = True
        while is_going_on:
            batch = await self._parts.batches.owned(self.batch_id, self._owner)
            with suppress(ForbiddenChangeError):  # it was cancelled meanwhile
                is_going_on = await self._advance(batch)

    async def _advance(self, batch: Batch) -> bool:
        """To its next state; whether there is more to do here. Raises `ForbiddenChangeError`."""
        match batch.status:
            case BatchStatus.VALIDATING:
                return await self._validate(batch)
            case BatchStatus.IN_PROGRESS:
                return await self._answer_lines(batch)
            case _:
                await self._finish(batch)
                return False

    # The input

    async def _validate(self, batch: Batch) -> bool:
        batches, kept_lines = self._parts.batches, self._parts.lines
        path = self._parts.files.path(batch.input_file_id)
        try:
            lines = await asyncio.to_thread(self._read_input, path, batch.endpoint)
        except WrongInputError as error:
            await batches.fail(batch.id, self._owner, BatchErrors(data=error.errors))
            return False
        await kept_lines.clear(batch.id, self._owner)
        for start in range(0, len(lines), _WRITTEN_LINES):
            await kept_lines.put(batch.id, self._owner, lines[start : start + _WRITTEN_LINES])
        models = {line.model for line in lines}
        model = models.pop() if len(models) == 1 else None
        await batches.change(batch.id, self._owner, BatchStatus.IN_PROGRESS, model=model)
        return True

    def _read_input(self, path: Path, endpoint: str) -> list[Line]:
        with path.open("rb") as file:
            return read_input(
                _lines_of(file, self._max_line_bytes),
                endpoint,
                is_model=self._is_model,
                max_line_bytes=self._max_line_bytes,
            )

    def _is_model(self, model_id: str) -> bool:
        try:
            self._parts.dispatcher.model(model_id)
        except ModelNotFoundError:
            return False
        return True

    # The lines

    async def _answer_lines(self, batch: Batch) -> bool:
        """Until all have a result, the batch is cancelled, or its time is over; not when the gateway drains."""
        feeding = asyncio.create_task(self._feed(batch), name=f"feed {batch.id}")
        cancelled = asyncio.create_task(self._is_cancelled.wait(), name=f"watch {batch.id}")
        both = (feeding, cancelled)
        try:
            left_s = max(0.0, batch.expires_at - time.time())
            await asyncio.wait(both, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            was_fed = feeding.done()
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        if was_fed and not feeding.result():
            return False
        await self._parts.batches.change(batch.id, self._owner, BatchStatus.FINALIZING)
        return True

    async def _feed(self, batch: Batch) -> bool:
        """Whether every line has a result."""
        models = await self._parts.lines.open_models(batch.id)
        endpoint = self._endpoints[batch.endpoint]
        feeds = [LineFeed(batch, self._owner, model, endpoint, self._parts) for model in models]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(feed.run()) for feed in feeds]
        return all(task.result() for task in tasks)

    # The files

    async def _finish(self, batch: Batch) -> None:
        batches = self._parts.batches
        expires_s = await batches.output_expires_s(batch.id)
        reason = CANCELLED if batch.status is BatchStatus.CANCELLING else EXPIRED
        num_unanswered = batch.request_counts.total - batch.request_counts.completed - batch.request_counts.failed
        output = await self._write(batch, "output", self._results(batch, is_success=True), expires_s)
        errors = await self._write(batch, "error", self._failures(batch, reason), expires_s)
        status = BatchStatus.CANCELLED if reason is CANCELLED else BatchStatus.COMPLETED
        if status is BatchStatus.COMPLETED and num_unanswered:
            status = BatchStatus.EXPIRED
        outcome = Outcome(status=status, output_file=output, error_file=errors, num_unanswered=num_unanswered)
        try:
            await batches.finish(batch.id, self._owner, outcome)
        except LeaseLostError:
            for file in filter(None, (output, errors)):
                await self._parts.files.discard(file)
            raise
        # After any other failure the files may be there for clients all the same; if they are not, they are swept away.
        if num_unanswered:
            told = LineOutcome.CANCELLED if reason is CANCELLED else LineOutcome.EXPIRED
            self._parts.metrics.batch_lines(told, num_unanswered)

    async def _write(
        self, batch: Batch, kind: str, pages: AsyncIterator[bytes], expires_s: int | None
    ) -> FileObject | None:
        """A file of what there is, if there is anything."""
        first = await anext(pages, None)
        if first is None:
            return None

        async def content() -> AsyncIterator[bytes]:
            yield first
            async for page in pages:
                yield page

        return await self._parts.files.write(
            content(), filename=f"{batch.id}_{kind}.jsonl", purpose="batch_output", expires_after_s=expires_s
        )

    async def _results(self, batch: Batch, *, is_success: bool) -> AsyncIterator[bytes]:
        after = 0
        while page := await self._parts.lines.results(batch.id, is_success=is_success, after=after, limit=_PAGE):
            yield b"".join(text for _, text in page)
            after = page[-1][0]

    async def _failures(self, batch: Batch, reason: BatchError) -> AsyncIterator[bytes]:
        """The lines that got an error, and after them those that got no answer."""
        async for page in self._results(batch, is_success=False):
            yield page
        after = 0
        while lines := await self._parts.lines.open_lines(batch.id, None, after=after, limit=_PAGE):
            yield b"".join(unanswered(line, new_request_id(), reason) for line in lines)
            after = lines[-1].number


def _lines_of(file: IO[bytes], max_bytes: int) -> Iterator[bytes]:
    """Of one that is longer, so much that this is seen."""
    while line := file.readline(max_bytes + 1):
        yield line
