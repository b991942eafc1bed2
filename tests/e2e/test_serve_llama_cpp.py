"""`aviary serve` with the LlamaCpp entry of the zoo: Ray, gateway, channel, llama.cpp, and the openai client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Server, write_registry

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"
ADAPTED = "tests/adapted"
QUESTION: Any = {"role": "user", "content": "Write one sentence about a cat."}

pytestmark = pytest.mark.timeout(600)  # the first start may have to fetch the model


def variant(model_id: str, **kwargs: Any) -> dict[str, Any]:
    """The zoo's entry on one CPU: llama.cpp's threads wait by spinning, and tests share their cores."""
    return {
        "extends": f"{MODEL.replace('/', '--')}.yaml",
        "model_config": {
            "model_id": model_id,
            "initialization": {"initializer": {"type": "LlamaCpp", "model_init_kwargs": kwargs}},
        },
        "scaling_config": {"num_cpus_per_worker": 1},
    }


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    entries = variant(MODEL), variant(ADAPTED, lora_path="adapter.gguf")
    registry = write_registry(tmp_path_factory.mktemp("registry"), *entries)
    server = start(AVIARY_REGISTRY=str(registry), AVIARY_MODELS=f"{MODEL},{ADAPTED}")
    server.wait_until(lambda: server.model(MODEL)["state"] == "ready")
    return server


def test_concurrent_requests_get_what_each_gets_alone(server: Server) -> None:
    async def ask(content: str) -> str:
        async with server.async_client as client:
            reply = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": content}], temperature=0, max_tokens=16
            )
        return reply.choices[0].message.content or ""

    async def ask_all(contents: list[str]) -> list[str]:
        return await asyncio.gather(*(ask(content) for content in contents))

    contents = [f"Count from {first} to ten." for first in ("one", "two", "three", "four")]
    alone = [asyncio.run(ask(content)) for content in contents]
    assert all(alone)
    assert asyncio.run(ask_all(contents)) == alone


def test_a_stream_says_what_the_whole_reply_says_and_a_stop_ends_it(server: Server) -> None:
    parameters: Any = {"model": MODEL, "messages": [QUESTION], "seed": 7, "temperature": 0.7, "max_tokens": 24}
    with server.client as client:
        whole = client.chat.completions.create(**parameters).choices[0].message.content or ""
        chunks = list(client.chat.completions.create(**parameters, stream=True))
        stop = whole.split()[3]
        cut = client.chat.completions.create(**parameters, stop=stop).choices[0]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_repeated_prompt_is_counted_as_cached(server: Server) -> None:
    with server.client as client:
        for _ in range(2):
            usage = client.chat.completions.create(model=MODEL, messages=[QUESTION], max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= usage.prompt_tokens - 1


def test_the_model_card_says_the_context_length(server: Server) -> None:
    assert server.model(MODEL)["max_model_len"] == 8192


def test_what_it_cannot_honour_is_that_models_reason_by_name(server: Server) -> None:
    server.wait_until(lambda: server.model(ADAPTED)["state"] == "failed", timeout_s=60)
    assert "model_init_kwargs.lora_path is not executed" in server.model(ADAPTED)["reason"]
