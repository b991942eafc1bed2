"""The application: every part of the gateway, wired together in one visible place.

Knows no Ray: the pool and the way to connect to a worker are handed in. Called by the command line and by tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from gateway.batch_run import BatchRun
from gateway.batch_runner import BatchRunner
from gateway.begun_reply import Begins
from gateway.call import Call
from gateway.channel import Connect
from gateway.dispatch import Dispatcher
from gateway.kept_responses import KeptResponses
from gateway.line_feed import FeedParts
from gateway.load_reporter import LoadReporter
from gateway.metrics import Metrics
from gateway.middleware.body_limit import BodyLimitMiddleware
from gateway.middleware.error_edge import ErrorMiddleware, framework_error
from gateway.middleware.request_id import RequestIdMiddleware
from gateway.offline import Offline
from gateway.pool import PoolSource
from gateway.protocol import openapi
from gateway.routes import (
    admin,
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    messages,
    metrics,
    models,
    responses,
    tokenization,
)
from gateway.routes.admin import Reload
from gateway.settings import GatewaySettings
from gateway.sse import configure_library
from gateway.start_check import offline_stores, response_store

logger = logging.getLogger(__name__)

FIRST_BACK_OFF_S: Final = 1.0
MAX_BACK_OFF_S: Final = 30.0
FIRST_VIEW_S: Final = 5.0
"""How long a start waits to hear what is deployed; a gateway that knows of no model calls every model unknown."""
IN_BATCHES: Final[tuple[tuple[str, Begins], ...]] = tuple(
    (one.path, one) for one in (chat.endpoint, completions.endpoint, responses.endpoint, embeddings.endpoint)
)
"""The endpoints that batches may be about."""


def create_app(
    settings: GatewaySettings, pool: PoolSource, connect: Connect, *, reload: Reload | None = None
) -> FastAPI:
    """The gateway as an ASGI application. It follows `pool` and serves as long as its lifespan.

    `reload` reads and deploys the registry's files anew, where the gateway's starter has some.
    """
    configure_library()
    app = _Application(
        title="Aviary",
        summary="OpenAI-compatible access to a pool of language models",
        lifespan=_lifespan,
        middleware=[
            Middleware(RequestIdMiddleware),
            Middleware(ErrorMiddleware),
            Middleware(
                BodyLimitMiddleware,
                settings.max_body_bytes,
                settings.body_timeout_s,
                uploads={files.PATH: settings.max_file_bytes},
            ),
        ],
        exception_handlers={HTTPException: framework_error},
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.metrics = Metrics(CollectorRegistry())
    app.state.dispatcher = Dispatcher(
        connect, app.state.metrics, request_timeout_s=settings.request_timeout_s, routing=settings.routing
    )
    app.state.pool = pool
    app.state.reload = reload
    app.state.kept_responses = KeptResponses(response_store(settings), max_conversation_bytes=settings.max_body_bytes)
    _add_batches(app, settings)
    for part in (
        completions,
        chat,
        responses,
        messages,
        embeddings,
        tokenization,
        files,
        batches,
        models,
        health,
        metrics,
        admin,
    ):
        app.include_router(part.router)
    return app


def _add_batches(app: FastAPI, settings: GatewaySettings) -> None:
    """The stores of files and batches and who runs these, where there is a folder for them."""
    app.state.offline_stores = app.state.batch_runner = None
    stores = offline_stores(settings)
    if stores is None:
        app.state.offline = Offline(None, on_work=lambda: None)
        return
    parts = FeedParts(
        batches=stores.batches,
        lines=stores.lines,
        files=stores.files,
        dispatcher=app.state.dispatcher,
        metrics=app.state.metrics,
        new_call=lambda request_id: Call.in_background(app.state, trace_id=request_id, received_at=time.monotonic()),
    )
    runner = BatchRunner(
        stores.batches,
        stores.lines,
        stores.files,
        app.state.dispatcher,
        app.state.metrics,
        lambda batch, owner: BatchRun(batch, owner, dict(IN_BATCHES), parts, max_line_bytes=settings.max_body_bytes),
    )
    app.state.offline_stores, app.state.batch_runner = stores, runner
    app.state.offline = Offline(stores, on_work=runner.wake)


class _Application(FastAPI):
    """With an OpenAPI document that has what its routes refer to."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for kind, parts in openapi.components().items():
            document.setdefault("components", {}).setdefault(kind, {}).update(parts)
        return document


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await app.state.kept_responses.open()
    if app.state.offline_stores is not None:
        await app.state.offline_stores.open()
    has_view = asyncio.Event()
    reporter = LoadReporter(app.state.dispatcher, app.state.pool)
    tasks = [
        asyncio.create_task(_follow(app.state.pool, app.state.dispatcher, has_view), name="follow-pool"),
        asyncio.create_task(reporter.run(), name="report-load"),
    ]
    if app.state.batch_runner is not None:
        tasks.append(asyncio.create_task(_run_batches(app.state.batch_runner, has_view), name="run-batches"))
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_VIEW_S):
                await has_view.wait()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await app.state.dispatcher.close()
        await app.state.pool.close()
        await app.state.kept_responses.close()
        if app.state.offline_stores is not None:
            await app.state.offline_stores.close()


async def _run_batches(runner: BatchRunner, has_view: asyncio.Event) -> None:
    """Not before it is known what is deployed: a batch about models that nobody knows would fail."""
    await has_view.wait()
    await runner.run()


async def _follow(pool: PoolSource, dispatcher: Dispatcher, has_view: asyncio.Event) -> None:
    back_off_s = FIRST_BACK_OFF_S
    while True:
        try:
            async for view in pool.views():
                dispatcher.update(view)
                has_view.set()
                back_off_s = FIRST_BACK_OFF_S
        except Exception:  # the edge of a task nobody awaits: without it the gateway would go blind in silence
            logger.exception("the pool cannot be seen; the gateway serves what it knows, and looks again")
        await asyncio.sleep(back_off_s)
        back_off_s = min(2 * back_off_s, MAX_BACK_OFF_S)
