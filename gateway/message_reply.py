"""How POST /v1/messages says things: one message, and the events of its stream.

Read as a whole it is what its events come to, so both say the same. Knows neither HTTP nor workers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence

import msgspec

from gateway.answer import AnswerDelta, AnswerReader, PlainReader, read_in_order
from gateway.block_writer import BlockWriter
from gateway.completions import Answering, Layout
from gateway.error_bodies import message_error
from gateway.errors import ApiError
from gateway.framing import event as framed
from gateway.output_stream import OutputStream
from gateway.protocol.message_objects import (
    Message,
    MessageDelta,
    MessageEnd,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopReason,
)
from gateway.protocol.responses import FinishReasonName
from model_registry.contract import SequenceOutput


class MessageReply(Answering):
    """One message being made from one output stream: read it either by `chunks` or by `whole`."""

    def __init__(
        self,
        stream: OutputStream,
        begun: Message,
        *,
        request_id: str,
        stops: Collection[str] = (),
        new_reader: Callable[[], AnswerReader] = PlainReader,
    ) -> None:
        """`begun` is the message before there is any content; `stops` are the request's, not the model's own."""
        super().__init__(stream, Layout(), new_reader)
        self._message = begun
        self._request_id = request_id
        self._stops = stops
        self._stop: str | None = None
        self._writer = BlockWriter()

    @property
    def framing(self) -> MessageReply:
        """Its own: an error tells the request's id."""
        return self

    async def chunks(self) -> AsyncGenerator[MessageEvent, None]:
        """Anthropic's events in order. Raises `ApiError` where the stream does."""
        yield MessageStart(message=self._message)
        async for more in self._progress():
            for event in self._writer.add(more.delta):
                yield event
            if more.finish_reason is not None:
                for event in self._writer.finish():
                    yield event
                self._message = self._finished(more.finish_reason)
        end = self._message
        assert end.stop_reason is not None  # noqa: S101  a stream without an end raises
        yield MessageDelta(
            delta=MessageEnd(stop_reason=end.stop_reason, stop_sequence=end.stop_sequence), usage=end.usage
        )
        yield MessageStop()

    async def whole(self) -> Message:
        """The message at its end. Raises `ApiError` where the stream does."""
        async for _ in self.chunks():
            pass
        return self._message

    def encode(self, event: MessageEvent) -> bytes:
        return framed(event, event.name)

    def error(self, error: ApiError) -> bytes:
        return self.encode(message_error(error, self._request_id))

    def end(self) -> bytes:
        """Nothing: the last event says that it is the last."""
        return b""

    def _read(self, index: int, output: SequenceOutput) -> Sequence[AnswerDelta]:
        return read_in_order(self._readers[index], output.text, ended=output.finish_reason is not None)

    def _note(self, index: int, output: SequenceOutput) -> None:
        super()._note(index, output)
        self._stop = output.stop

    def _finished(self, reason: FinishReasonName) -> Message:
        stop = self._stop if reason == "stop" and self._stop in self._stops else None
        usage = self._total_usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return msgspec.structs.replace(
            self._message,
            content=self._writer.blocks,
            stop_reason="end_turn" if reason == "stop" and stop is None else _STOP_REASONS[reason],
            stop_sequence=stop,
            usage=MessageUsage(
                input_tokens=usage.prompt_tokens - cached,
                cache_read_input_tokens=cached,
                output_tokens=usage.completion_tokens,
            ),
        )


_STOP_REASONS: dict[FinishReasonName, StopReason] = {
    "stop": "stop_sequence",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
