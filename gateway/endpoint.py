"""One request for generation, from its body to its response: validate, submit, answer, always clean up.

The only place where requests, dispatcher, replies and metrics meet; the routes give it what their endpoint is about.
Knows starlette's requests and responses, not the workers. A line of a batch takes the same way, without HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.answer import AnswerReader, PlainReader
from gateway.begun_reply import BegunReply
from gateway.call import SESSION_HEADER, Call
from gateway.client import CLIENT_CLOSED_REQUEST, parsed, parsed_body, recorded, unless_gone
from gateway.completions import Completion, Layout, ReplyShape
from gateway.errors import ApiError, InvalidRequestError
from gateway.framing import Framing
from gateway.metrics import RequestRecord
from gateway.output_stream import OutputStream
from gateway.protocol import openapi
from gateway.protocol.fields import AnsweredBody, GenerationFields
from gateway.protocol.openapi import Responses
from gateway.protocol.responses import encode
from gateway.sse import EventStream, events
from gateway.ticket import Submission
from model_registry.contract import FinishReason, ModelView, Prompt, SamplingParams

logger = logging.getLogger(__name__)

EXAMPLE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The one that `make serve` brings, for the OpenAPI document."""

_SESSION_PARAMETER: dict[str, Any] = {
    "in": "header",
    "name": SESSION_HEADER,
    "schema": {"type": "string"},
    "description": "Requests with the same id go to the same replica where load allows; "
    "comes before `prompt_cache_key` and `user`.",
}

RequestT = TypeVar("RequestT", bound=AnsweredBody)
GenerationRequestT = TypeVar("GenerationRequestT", bound=GenerationFields)
RequestT_contra = TypeVar("RequestT_contra", bound=AnsweredBody, contravariant=True)


class ReplyInProgress(Protocol):
    """A reply that is made from an output stream: read either by `chunks` or by `whole`."""

    @property
    def stream(self) -> OutputStream: ...

    @property
    def finish_reason(self) -> FinishReason | None: ...

    @property
    def framing(self) -> Framing[Any]: ...

    def chunks(self) -> AsyncGenerator[Any, None]: ...

    async def whole(self) -> msgspec.Struct: ...


class Work(Protocol[RequestT_contra]):
    """What one request comes to: what to generate, and how to say it."""

    @property
    def prompts(self) -> tuple[Prompt, ...]: ...

    @property
    def sampling(self) -> tuple[SamplingParams, ...]: ...

    def begin(self, stream: OutputStream, request: RequestT_contra) -> ReplyInProgress:
        """The reply to the request, made from what comes in the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Work that is told as choices, in the endpoint's shape of them."""

    prompts: tuple[Prompt, ...]
    sampling: tuple[SamplingParams, ...]
    """Of each sequence that is made of each prompt."""
    shape: ReplyShape
    new_reader: Callable[[], AnswerReader] = PlainReader
    """Makes what finds the parts of one sequence's answer."""

    def begin(self, stream: OutputStream, request: GenerationFields) -> Completion:
        return Completion(
            stream,
            self.shape,
            Layout(len(self.prompts), len(self.sampling), request.num_choices),
            usage_chunk=request.wants_usage_chunk,
            tells_timing=bool(request.timing),
            new_reader=self.new_reader,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(ABC, Generic[RequestT]):
    """What one endpoint is about."""

    path: str
    request_type: type[RequestT]
    prompt_param: str
    params: Mapping[str, str] = field(default_factory=dict)
    """Fields by the names that workers have for them, where they differ."""
    reply: type[msgspec.Struct]
    chunks: tuple[type[msgspec.Struct], ...]
    """What a stream of it is made of."""
    example: dict[str, Any]
    """A body, for the OpenAPI document."""
    error: type[msgspec.Struct] | None = None
    """What its errors are, for that document; None: OpenAI's."""

    @abstractmethod
    async def work(self, call: Call, request: RequestT, model: ModelView) -> Work[RequestT]:
        """What the request comes to. Raises `ApiError`."""

    @property
    def responses(self) -> Responses:
        """For the OpenAPI document."""
        replied = openapi.success("The reply, whole or as a stream.", self.reply, chunks=self.chunks, error=self.error)
        return replied | openapi.errors(*openapi.WORK_ERRORS, error=self.error)

    @property
    def request_body(self) -> dict[str, Any]:
        """For the OpenAPI document, with the one header that matters beside it."""
        content = {"schema": self.request_type.body_schema(), "example": self.example}
        return {
            "requestBody": {"required": True, "content": {"application/json": content}},
            "parameters": [_SESSION_PARAMETER],
        }

    async def answer(self, http: Request) -> Response:
        """The response to one request. Raises `ApiError`, which the error middleware answers."""
        call = Call.of(http)
        record = call.metrics.request(self.path, call.received_at)
        return await recorded(record, self._answer(http, call, record))

    async def begin(self, call: Call, body: bytes) -> BegunReply:
        """Queues what a body asks for that came by another way than HTTP. Raises `ApiError`."""
        request = await parsed_body(body, self._parser(call))
        if request.stream:
            raise InvalidRequestError(
                "Invalid 'stream': nobody reads a stream here; leave it out or set it to false.",
                param="stream",
                code="invalid_value",
            )
        reply = await self._start(call, request, call.dispatcher.model(request.model))
        return BegunReply(reply.stream, reply.whole)

    def _parser(self, call: Call) -> Callable[[bytes], RequestT]:
        return partial(self.request_type.parse, max_choices=call.settings.max_choices)

    async def _answer(self, http: Request, call: Call, record: RequestRecord) -> Response:
        request = await parsed(http, self._parser(call))
        model = call.dispatcher.model(request.model)
        record.model = model.model_id
        reply = await self._start(call, request, model)
        answer = self._stream if request.stream else self._whole
        try:
            return await answer(http, call, reply, record)
        except BaseException:
            reply.stream.close()
            raise

    async def _start(self, call: Call, request: RequestT, model: ModelView) -> ReplyInProgress:
        work = await self.work(call, request, model)
        submission = Submission(
            model_id=model.model_id,
            prompts=work.prompts,
            sampling=work.sampling,
            prompt_param=self.prompt_param,
            params=self.params,
            trace_id=call.trace_id,
            received_at=call.received_at,
            session=call.session or request.session,
            is_background=call.is_background,
        )
        stream = call.dispatcher.submit(submission)
        try:
            return work.begin(stream, request)
        except BaseException:
            stream.close()
            raise

    async def _whole(self, http: Request, call: Call, reply: ReplyInProgress, record: RequestRecord) -> Response:
        whole = await unless_gone(http, reply.whole())
        reply.stream.close()
        self._note_overhead(call, reply)
        record.done(200, reply.finish_reason)
        return Response(encode(whole), media_type="application/json")

    async def _stream(self, http: Request, call: Call, reply: ReplyInProgress, record: RequestRecord) -> Response:
        settings = call.settings
        # An error that comes early still gets its own HTTP status.
        await unless_gone(http, _at_most(settings.first_output_grace_s, reply.stream.started()))
        self._note_overhead(call, reply)

        def on_end(error: ApiError | None) -> None:
            if error is None:
                record.done(200, reply.finish_reason)
            else:
                record.failed(error)
                logger.warning("request %s ended in its stream: %s", call.trace_id, type(error).__name__)

        def on_close() -> None:
            reply.stream.close()
            record.done(CLIENT_CLOSED_REQUEST)

        return EventStream(
            events(reply.chunks(), reply.framing, on_end),
            ping_interval_s=settings.ping_interval_s,
            send_timeout_s=settings.send_timeout_s,
            on_close=on_close,
        )

    def _note_overhead(self, call: Call, reply: ReplyInProgress) -> None:
        """For the first token: from arrival to the queue, and from the worker's output to here."""
        stream = reply.stream
        if stream.first_output_at is not None:
            before_s = stream.opened_at - call.received_at
            call.metrics.overhead(self.path, before_s + self._since(stream.first_output_at, reply))

    @staticmethod
    def _since(moment: float, reply: ReplyInProgress) -> float:
        """A whole reply waits for its last token, which is no overhead of ours."""
        return 0.0 if reply.finish_reason is not None else time.monotonic() - moment


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEndpoint(Endpoint[GenerationRequestT]):
    """An endpoint that answers in choices, and whose requests say all by themselves."""

    plan: Callable[[GenerationRequestT, ModelView], Plan]

    async def work(self, call: Call, request: GenerationRequestT, model: ModelView) -> Plan:
        return self.plan(request, model)


async def _at_most(timeout_s: float, work: Awaitable[None]) -> None:
    """Waits for `work`, but not longer."""
    try:
        async with asyncio.timeout(timeout_s):
            await work
    except TimeoutError:
        return
