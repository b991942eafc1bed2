"""What one gateway connection has still to be told: at most one pending output per sequence.

While the reader keeps up every output leaves as the engine made it; when it falls behind, a sequence's outputs grow
together, so memory is bounded by the running sequences and their lengths, never by the number of steps. Lives on one
event loop; filled by the exchange, emptied by the connection's writer. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from model_registry.contract import SequenceOutput


class Outbox:
    """Pending outputs in order of arrival, merged per sequence."""

    def __init__(self) -> None:
        self._pending: dict[str, SequenceOutput] = {}
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, outputs: Iterable[SequenceOutput]) -> None:
        """Add outputs, each joined to what its sequence has pending."""
        for output in outputs:
            earlier = self._pending.get(output.request_id)
            self._pending[output.request_id] = output if earlier is None else earlier.followed_by(output)
        if self._pending:
            self._filled.set()
            self._emptied.clear()

    def discard(self, request_ids: Iterable[str]) -> None:
        """Forget what is pending for sequences nobody waits for any more."""
        for request_id in request_ids:
            self._pending.pop(request_id, None)

    def show_life(self) -> None:
        """Let the writer write now, even if nothing is pending."""
        self._filled.set()

    async def take(self, timeout_s: float) -> tuple[SequenceOutput, ...]:
        """Everything pending, as soon as there is something; nothing after `timeout_s`, or to show life."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._filled.wait()
        except TimeoutError:
            return ()
        outputs = tuple(self._pending.values())
        self._pending.clear()
        self._filled.clear()
        return outputs

    def note_written(self) -> None:
        """What was taken is on its way to the gateway."""
        if not self._pending:
            self._emptied.set()

    def close(self) -> None:
        """Nobody reads any more; whoever waits for that need not."""
        self._pending.clear()
        self._emptied.set()

    async def wait_until_written(self) -> None:
        """Until the reader has caught up. Ends with the connection, whose tasks are cancelled."""
        await self._emptied.wait()
