"""How POST /v1/responses says things: one response, and the events of its stream.

Read as a whole it is what its events come to, so both say the same. Knows neither HTTP nor workers, nor where
responses are kept: who wants that hands in what keeps it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

from gateway.answer import AnswerReader, PlainReader
from gateway.completions import Answering, Layout
from gateway.errors import ApiError, InvalidRequestError, QueueFullError
from gateway.framing import event as framed
from gateway.output_stream import OutputStream
from gateway.output_writer import OutputWriter
from gateway.protocol.response_objects import (
    Completed,
    Created,
    ErrorDetails,
    ErrorEvent,
    Event,
    Failed,
    Incomplete,
    IncompleteDetails,
    InProgress,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseUsage,
)

Keep = Callable[[Response], Awaitable[Response]]
"""Keeps a finished response where that is wanted, and says in the response whether it did."""


class ResponseReply(Answering):
    """One response being made from one output stream: read it either by `chunks` or by `whole`."""

    def __init__(
        self,
        stream: OutputStream,
        begun: Response,
        keep: Keep,
        *,
        new_reader: Callable[[], AnswerReader] = PlainReader,
    ) -> None:
        """`begun` is what the response is before there is any output."""
        super().__init__(stream, Layout(), new_reader)
        self._response = begun
        self._keep = keep
        self._writer = OutputWriter(begun.id)
        self._num_events = 0

    @property
    def framing(self) -> ResponseReply:
        """Its own: an error tells how far the response has come."""
        return self

    async def chunks(self) -> AsyncGenerator[Event, None]:
        """OpenAI's events in order. Raises `ApiError` where the stream does."""
        yield self._numbered(Created(response=self._response))
        yield self._numbered(InProgress(response=self._response))
        async for more in self._progress():
            tokens = self._take_tokens(more.index) if more.delta.content else ()
            for event in self._writer.add(more.delta, tokens):
                yield self._numbered(event)
            if more.finish_reason is not None:
                is_cut = more.finish_reason == "length"
                for event in self._writer.finish(self._take_tokens(more.index), is_cut=is_cut):
                    yield self._numbered(event)
                self._response = await self._keep(self._finished(is_cut=is_cut))
        is_whole = self._response.status == "completed"
        yield self._numbered((Completed if is_whole else Incomplete)(response=self._response))

    async def whole(self) -> Response:
        """The response at its end. Raises `ApiError` where the stream does."""
        async for _ in self.chunks():
            pass
        return self._response

    def encode(self, event: Event) -> bytes:
        return framed(event, event.event_type)

    def error(self, error: ApiError) -> bytes:
        """The error, which OpenAI's clients raise, and what became of the response."""
        details = ErrorDetails(type=error.type, code=error.code, message=error.message, param=error.param)
        told = ErrorEvent(code=error.code, message=error.message, param=error.param, error=details)
        failed = msgspec.structs.replace(
            self._response, status="failed", error=_response_error(error), output=self._writer.items
        )
        return self.encode(self._numbered(told)) + self.encode(self._numbered(Failed(response=failed)))

    def end(self) -> bytes:
        """Nothing: the last event says that it is the last."""
        return b""

    def _numbered(self, event: Event) -> Event:
        self._num_events += 1
        return msgspec.structs.replace(event, sequence_number=self._num_events - 1)

    def _finished(self, *, is_cut: bool) -> Response:
        return msgspec.structs.replace(
            self._response,
            status="incomplete" if is_cut else "completed",
            incomplete_details=IncompleteDetails("max_output_tokens") if is_cut else None,
            completed_at=None if is_cut else int(time.time()),
            output=self._writer.items,
            usage=self._usage(),
        )

    def _usage(self) -> ResponseUsage:
        """Which tokens were reasoning nobody counts: they are estimated by their share of the text."""
        usage = self._total_usage()
        reasoning_tokens = round(usage.completion_tokens * self._writer.reasoning_share)
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens),
            total_tokens=usage.total_tokens,
        )


def _response_error(error: ApiError) -> ResponseError:
    """In the few codes that a response has."""
    match error:
        case QueueFullError():
            return ResponseError("rate_limit_exceeded", error.message)
        case InvalidRequestError():
            return ResponseError("invalid_prompt", error.message)
        case _:
            return ResponseError("server_error", error.message)
