"""Requests from body to reply, in one process: what is cleaned up, and what is done beside the event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway import task_endpoint
from gateway.app import create_app
from gateway.dispatch import Dispatcher
from gateway.response_reply import ResponseReply
from gateway.routes import embeddings
from gateway.settings import GatewaySettings
from model_registry.contract import FinishReason, GenerationRequest, SequenceOutput, Usage
from tests.support.scripted_pool import (
    MODEL,
    ScriptedWorker,
    StaticPool,
    TalkingWorker,
    connect_to,
    model_view,
    pool_view,
    replica,
)


class EmbeddingWorker(TalkingWorker):
    """A vector of two numbers to everybody."""

    async def _talk(self, request: GenerationRequest) -> None:
        usage = Usage(prompt_tokens=1, completion_tokens=0, cached_tokens=0)
        self.emit(
            SequenceOutput(
                request_id=request.request_id, embedding=bytes(8), finish_reason=FinishReason.STOP, usage=usage
            )
        )


@asynccontextmanager
async def gateway(worker: ScriptedWorker) -> AsyncIterator[tuple[httpx.AsyncClient, Dispatcher]]:
    app = create_app(GatewaySettings(), StaticPool(pool_view(model_view(replica("a")))), connect_to({"a": worker}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        yield client, app.state.dispatcher


async def test_what_was_queued_is_called_back_when_its_reply_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("not expected")

    monkeypatch.setattr(ResponseReply, "__init__", fail)
    async with gateway(ScriptedWorker()) as (client, dispatcher):
        answer = await client.post("/v1/responses", json={"model": MODEL, "input": "hi"})
        assert answer.status_code == 500
        assert await dispatcher.wait_idle(1)


@pytest.mark.parametrize(("limit_bytes", "is_aside"), [(16, True), (17, False)])
async def test_many_vectors_become_json_beside_the_event_loop(
    limit_bytes: int, is_aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    as_floats = embeddings._as_floats

    def noted(vector: bytes) -> Any:
        threads.add(threading.current_thread())
        return as_floats(vector)

    monkeypatch.setattr(embeddings, "_as_floats", noted)
    monkeypatch.setattr(task_endpoint, "_LARGE_VECTORS_BYTES", limit_bytes)
    async with gateway(EmbeddingWorker()) as (client, _):
        answer = await client.post("/v1/embeddings", json={"model": MODEL, "input": ["a", "b"]})
    assert [one["embedding"] for one in answer.json()["data"]] == [[0.0, 0.0]] * 2
    assert (threads != {threading.main_thread()}) is is_aside
