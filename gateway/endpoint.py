"""One HTTP request for generation, from its body to its response: validate, submit, answer, always clean up.

The only place where requests, dispatcher, replies and metrics meet; the routes give it what their endpoint is about.
Knows starlette's requests and responses, not the workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.answer import AnswerReader, PlainReader
from gateway.completions import Completion, Layout, ReplyShape
from gateway.dispatch import Dispatcher
from gateway.errors import ApiError, ServerError
from gateway.metrics import Metrics, RequestRecord
from gateway.protocol.fields import GenerationFields
from gateway.protocol.responses import encode
from gateway.settings import GatewaySettings
from gateway.sse import EventStream, events
from gateway.ticket import Submission
from model_registry.contract import ModelView, Prompt, SamplingParams

logger = logging.getLogger(__name__)

_LARGE_BODY_BYTES = 64 * 1024
"""From here on a body is parsed in a thread, so that the event loop stays responsive."""
CLIENT_CLOSED_REQUEST = 499
"""Status in metrics of requests whose client went away; nobody else ever sees it."""

SESSION_HEADER = "x-session-id"
_SESSION_PARAMETER: dict[str, Any] = {
    "in": "header",
    "name": SESSION_HEADER,
    "schema": {"type": "string"},
    "description": "Requests with the same id go to the same replica where load allows; "
    "comes before `prompt_cache_key` and `user`.",
}

RequestT = TypeVar("RequestT", bound=GenerationFields)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one request comes to: what to generate, and how to say it."""

    prompts: tuple[Prompt, ...]
    sampling: tuple[SamplingParams, ...]
    """Of each sequence that is made of each prompt."""
    shape: ReplyShape
    new_reader: Callable[[], AnswerReader] = PlainReader
    """Makes what finds the parts of one sequence's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEndpoint(Generic[RequestT]):
    """What one endpoint is about."""

    path: str
    request_type: type[RequestT]
    prompt_param: str
    plan: Callable[[RequestT, ModelView], Plan]

    @property
    def request_body(self) -> dict[str, Any]:
        """For the OpenAPI document, with the one header that matters beside it."""
        schema = self.request_type.body_schema()
        return {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "parameters": [_SESSION_PARAMETER],
        }

    async def answer(self, http: Request) -> Response:
        """The response to one request. Raises `ApiError`, which the error middleware answers."""
        metrics: Metrics = http.app.state.metrics
        record = metrics.request(self.path, http.state.received_at)
        try:
            request = await self._parse(http)
            completion = self._start(http, request, record)
            return await self._respond(http, request, completion, record)
        except ApiError as error:
            record.failed(error)
            raise
        except _ClientGoneError:
            record.done(CLIENT_CLOSED_REQUEST)
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception:  # only counted here; the error middleware logs it and answers
            record.done(ServerError.status)
            raise

    async def _parse(self, http: Request) -> RequestT:
        settings: GatewaySettings = http.app.state.settings
        try:
            body = await http.body()
        except ClientDisconnect:
            raise _ClientGoneError from None
        if len(body) < _LARGE_BODY_BYTES:
            return self.request_type.parse(body, max_choices=settings.max_choices)
        return await asyncio.to_thread(self.request_type.parse, body, max_choices=settings.max_choices)

    def _start(self, http: Request, request: RequestT, record: RequestRecord) -> Completion:
        dispatcher: Dispatcher = http.app.state.dispatcher
        model = dispatcher.model(request.model)
        record.model = model.model_id
        plan = self.plan(request, model)
        submission = Submission(
            model_id=model.model_id,
            prompts=plan.prompts,
            sampling=plan.sampling,
            prompt_param=self.prompt_param,
            trace_id=http.state.request_id,
            received_at=http.state.received_at,
            session=http.headers.get(SESSION_HEADER) or request.session,
        )
        stream = dispatcher.submit(submission)
        return Completion(
            stream,
            plan.shape,
            Layout(len(plan.prompts), len(plan.sampling), request.num_choices),
            usage_chunk=request.wants_usage_chunk,
            new_reader=plan.new_reader,
        )

    async def _respond(
        self, http: Request, request: RequestT, completion: Completion, record: RequestRecord
    ) -> Response:
        answer = self._stream if request.stream else self._whole
        try:
            return await answer(http, completion, record)
        except BaseException:
            completion.stream.close()
            raise

    async def _whole(self, http: Request, completion: Completion, record: RequestRecord) -> Response:
        reply = await _unless_gone(http, completion.whole())
        completion.stream.close()
        self._note_overhead(http, completion)
        record.done(200, completion.finish_reason)
        return Response(encode(reply), media_type="application/json")

    async def _stream(self, http: Request, completion: Completion, record: RequestRecord) -> Response:
        settings: GatewaySettings = http.app.state.settings
        # An error that comes early still gets its own HTTP status.
        await _unless_gone(http, _at_most(settings.first_output_grace_s, completion.stream.started()))
        self._note_overhead(http, completion)

        def on_end(error: ApiError | None) -> None:
            if error is None:
                record.done(200, completion.finish_reason)
            else:
                record.failed(error)
                logger.warning("request %s ended in its stream: %s", http.state.request_id, type(error).__name__)

        def on_close() -> None:
            completion.stream.close()
            record.done(CLIENT_CLOSED_REQUEST)

        return EventStream(
            events(completion.chunks(), on_end),
            ping_interval_s=settings.ping_interval_s,
            send_timeout_s=settings.send_timeout_s,
            on_close=on_close,
        )

    def _note_overhead(self, http: Request, completion: Completion) -> None:
        """For the first token: from arrival to the queue, and from the worker's output to here."""
        stream = completion.stream
        if stream.first_output_at is not None:
            before_s = stream.opened_at - http.state.received_at
            metrics: Metrics = http.app.state.metrics
            metrics.overhead(self.path, before_s + self._since(stream.first_output_at, completion))

    @staticmethod
    def _since(moment: float, completion: Completion) -> float:
        """A whole reply waits for its last token, which is no overhead of ours."""
        return 0.0 if completion.finish_reason is not None else time.monotonic() - moment


class _ClientGoneError(Exception):
    """The client hung up before it got an answer."""


async def _unless_gone(http: Request, work: Awaitable[T]) -> T:
    """The result of `work`, or `_ClientGoneError` as soon as the client hangs up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(http))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _ClientGoneError
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _hung_up(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _at_most(timeout_s: float, work: Awaitable[None]) -> None:
    """Waits for `work`, but not longer."""
    try:
        async with asyncio.timeout(timeout_s):
            await work
    except TimeoutError:
        return
