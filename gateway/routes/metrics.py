"""GET /metrics: everything in `gateway.metrics`, as Prometheus text."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from gateway.metrics import Metrics
from gateway.protocol import openapi

router = APIRouter()


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=PlainTextResponse,
    responses=openapi.text("All metrics.", "text/plain") | openapi.errors(),
)
async def scrape(http: Request) -> Response:
    metrics: Metrics = http.app.state.metrics
    encoder, content_type = choose_encoder(http.headers.get("accept", ""))
    # In a thread: many models make thousands of series.
    text = await asyncio.to_thread(encoder, metrics.scrape())
    return Response(text, headers={"content-type": content_type})
