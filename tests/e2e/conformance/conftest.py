"""One server for all of the suite, and the clients that ask it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.conftest import Server, echo_entry, starting, write_registry
from tests.support.conformance_cases import ECHO, MODELS, SHORT_ECHO, SMOLLM2


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    short = echo_entry(SHORT_ECHO)
    short["model_config"]["embedding"] = {"dimensions": True}
    real = {"extends": f"{SMOLLM2.replace('/', '--')}.yaml", "model_config": {"model_id": SMOLLM2}}
    registry = write_registry(tmp_path_factory.mktemp("registry"), echo_entry(ECHO), short, real)
    store = tmp_path_factory.mktemp("store") / "responses.db"
    with starting(tmp_path_factory) as start:
        server = start(AVIARY_REGISTRY=str(registry), AVIARY_RESPONSES_STORE=str(store))
        for model in MODELS:
            server.wait_until(lambda model=model: server.model(model)["state"] == "ready")  # type: ignore[misc]
        yield server


@pytest.fixture(scope="package")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client as client:
        yield client


@pytest.fixture(scope="package")
def strict_client(server: Server) -> Iterator[openai.OpenAI]:
    """It raises where a reply is not exactly of its type."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client
