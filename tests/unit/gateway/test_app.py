"""The application's own task: following the pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway import app
from gateway.app import create_app
from gateway.settings import GatewaySettings
from model_registry.contract import PoolView
from tests.support.scripted_pool import ScriptedWorker, StaticPool, connect_to, model_view, pool_view, replica


class StumblingPool(StaticPool):
    """Fails once, then works."""

    num_failures = 0

    async def views(self) -> AsyncIterator[PoolView]:
        if not self.num_failures:
            self.num_failures += 1
            raise LookupError("not expected")
        async for view in super().views():
            yield view


async def test_an_unexpected_error_of_the_pool_does_not_blind_the_gateway(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "FIRST_BACK_OFF_S", 0.01)
    pool = StumblingPool(pool_view(model_view(replica("a"))))
    application = create_app(GatewaySettings(), pool, connect_to({"a": ScriptedWorker()}))
    async with application.router.lifespan_context(application):
        await asyncio.sleep(0.1)
        assert application.state.dispatcher.can_serve
    assert "not expected" in caplog.text


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/responses/resp_1", "DELETE, GET"),
        ("/v1/responses", "POST"),
        ("/v1/models/some/model", "GET"),
        ("/live", "GET, HEAD"),
    ],
)
async def test_a_url_that_does_not_take_a_method_says_which_it_takes(path: str, allowed: str) -> None:
    application = create_app(GatewaySettings(), StaticPool(pool_view()), connect_to({}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://gateway") as client:
        response = await client.put(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
