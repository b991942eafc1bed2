"""The outputs of one client's request, all its choices, between the dispatcher that fills and the one who reads.

Holds at most one output per choice: what was not read yet is merged with what comes next, so a slow reader costs
memory for its own text only, and never holds up a worker. Knows neither workers nor HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from gateway.errors import ApiError
from model_registry.contract import SequenceOutput

Indexed = tuple[int, SequenceOutput]


class OutputStream:
    """Async iterator of (choice index, output). Ends after the final output of every choice, or raises `ApiError`
    once everything that came before the error was read. Whoever reads must `close` it."""

    def __init__(self, num_choices: int, on_close: Callable[[], None]) -> None:
        self._pending: dict[int, SequenceOutput] = {}
        self._num_open = num_choices
        self._error: ApiError | None = None
        self._changed = asyncio.Event()
        self._on_close = on_close
        self._closed = False
        self.opened_at = time.monotonic()
        self.first_output_at: float | None = None

    @property
    def is_ended(self) -> bool:
        """Nothing more will come."""
        return self._closed or self._error is not None or self._num_open == 0

    def push(self, index: int, output: SequenceOutput) -> None:
        """The next output of a choice; nothing may follow its final one."""
        if self.is_ended:
            return
        if self.first_output_at is None:
            self.first_output_at = time.monotonic()
        earlier = self._pending.get(index)
        self._pending[index] = output if earlier is None else earlier.followed_by(output)
        if output.is_final:
            self._num_open -= 1
        self._changed.set()

    def fail(self, error: ApiError) -> None:
        """Ends all choices."""
        if not self.is_ended:
            self._error = error
            self._changed.set()

    def close(self) -> None:
        """The reader wants no more, whether or not there was an end. May be called again."""
        if not self._closed:
            self._closed = True
            self._pending.clear()
            self._on_close()

    async def started(self) -> None:
        """Waits until there is something to read. Raises `ApiError` when that is an error."""
        while not self._pending and not self.is_ended:
            self._changed.clear()
            await self._changed.wait()
        if not self._pending and self._error is not None:
            raise self._error

    def __aiter__(self) -> AsyncIterator[Indexed]:
        return self

    async def __anext__(self) -> Indexed:
        await self.started()
        if not self._pending:
            raise StopAsyncIteration
        index = min(self._pending)
        return index, self._pending.pop(index)
