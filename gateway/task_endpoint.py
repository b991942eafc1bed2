"""One request for something else than a generation, from its body to its response.

It takes the way of a generation, queue, channel and retries included, and ends with one output for each prompt. The
routes say what their endpoint asks of a worker, and what the outputs make. Knows starlette, not the workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.begun_reply import BegunReply
from gateway.call import Call
from gateway.client import parsed, parsed_body, recorded, unless_gone
from gateway.metrics import RequestRecord
from gateway.output_stream import OutputStream
from gateway.protocol import openapi
from gateway.protocol.fields import Body
from gateway.protocol.openapi import Responses
from gateway.protocol.responses import encode
from gateway.ticket import Submission
from model_registry.contract import NOTHING, ModelView, Prompt, SequenceOutput, Task

_LARGE_VECTORS_BYTES: Final = 64 * 1024

RequestT = TypeVar("RequestT", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """What one request comes to: what to do with which prompts, and how to say it."""

    prompts: tuple[Prompt, ...]
    task: Task
    prompt_param: str = ""
    """The field that holds the prompts, where it is not the endpoint's."""
    reply: Callable[[Sequence[SequenceOutput], ModelView], msgspec.Struct]
    """From the final outputs in the order of the prompts, and the model as it is then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEndpoint(Generic[RequestT]):
    """What one endpoint is about."""

    path: str
    request_type: type[RequestT]
    prompt_param: str
    plan: Callable[[RequestT, ModelView], TaskPlan]
    reply: type[msgspec.Struct]
    example: dict[str, Any]
    """A body, for the OpenAPI document."""
    error: type[msgspec.Struct] | None = None
    """What its errors are, for that document; None: OpenAI's."""

    @property
    def responses(self) -> Responses:
        """For the OpenAPI document."""
        return openapi.success("The reply.", self.reply) | openapi.errors(*openapi.WORK_ERRORS, error=self.error)

    @property
    def request_body(self) -> dict[str, Any]:
        """For the OpenAPI document."""
        content = {"schema": self.request_type.body_schema(), "example": self.example}
        return {"requestBody": {"required": True, "content": {"application/json": content}}}

    async def answer(self, http: Request) -> Response:
        """The response to one request. Raises `ApiError`, which the error middleware answers."""
        call = Call.of(http)
        record = call.metrics.request(self.path, call.received_at)
        return await recorded(record, self._answer(http, call, record))

    async def begin(self, call: Call, body: bytes) -> BegunReply:
        """Queues what a body asks for that came by another way than HTTP. Raises `ApiError`."""
        request = await parsed_body(body, self._parser(call))
        model = call.dispatcher.model(request.model)
        plan = self.plan(request, model)
        stream = call.dispatcher.submit(self._submission(call, model, plan))
        return BegunReply(stream, partial(_reply, call, plan, model, stream))

    def _parser(self, call: Call) -> Callable[[bytes], RequestT]:
        return partial(self.request_type.parse, max_choices=call.settings.max_choices)

    async def _answer(self, http: Request, call: Call, record: RequestRecord) -> Response:
        request = await parsed(http, self._parser(call))
        model = call.dispatcher.model(request.model)
        record.model = model.model_id
        plan = self.plan(request, model)
        stream = call.dispatcher.submit(self._submission(call, model, plan))
        try:
            outputs = await unless_gone(http, _final_outputs(stream))
        finally:
            stream.close()
        body = await _encoded(partial(_made, call, plan, model, outputs), outputs)
        record.done(200)
        return Response(body, media_type="application/json")

    def _submission(self, call: Call, model: ModelView, plan: TaskPlan) -> Submission:
        return Submission(
            model_id=model.model_id,
            prompts=plan.prompts,
            sampling=(NOTHING,),
            task=plan.task,
            prompt_param=plan.prompt_param or self.prompt_param,
            trace_id=call.trace_id,
            received_at=call.received_at,
            is_background=call.is_background,
        )


async def _reply(call: Call, plan: TaskPlan, model: ModelView, stream: OutputStream) -> msgspec.Struct:
    return _made(call, plan, model, await _final_outputs(stream))


def _made(call: Call, plan: TaskPlan, model: ModelView, outputs: Sequence[SequenceOutput]) -> msgspec.Struct:
    present = {one.model_id: one for one in call.dispatcher.models}
    return plan.reply(outputs, present.get(model.model_id, model))


async def _encoded(make: Callable[[], msgspec.Struct], outputs: Sequence[SequenceOutput]) -> bytes:
    """The reply in JSON. Many vectors become it in a thread, so that the event loop stays responsive."""
    if sum(len(output.embedding or b"") for output in outputs) < _LARGE_VECTORS_BYTES:
        return encode(make())
    return await asyncio.to_thread(lambda: encode(make()))


async def _final_outputs(stream: OutputStream) -> list[SequenceOutput]:
    """One of each prompt. Raises `ApiError` where the stream does."""
    outputs = {index: output async for index, output in stream}
    return [outputs[index] for index in sorted(outputs)]
