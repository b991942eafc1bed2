"""Gateway, channel and engine together on real models: everything but Ray, in one process."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.completion_choice import Logprobs as TextLogprobs

from model_registry.loader import ZOO, load_entry
from model_registry.schema import RegistryEntry
from tests.support.live_system import System, run_system

NUM_PARAMETER_SETS = 50
TINY = "tests/tiny"


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Iterator[System]:
    entry = RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": TINY,
                "initialization": {
                    "hf_model_id": str(tiny_llama),
                    "initializer": {"type": "SingleDevice", "dtype": "float32"},
                },
                "generation": {"max_batch_size": 8},
            },
            "scaling_config": {"num_gpus_per_worker": 0},
        }
    )
    yield from run_system(entry)


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[System]:
    yield from run_system(load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml"))


def test_a_prompt_of_more_tokens_than_the_registry_allows_is_refused_by_the_workers_count() -> None:
    entry = RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "tests/echo",
                "initialization": {"initializer": {"type": "Echo"}},
                "generation": {"max_input_tokens": 6},
            }
        }
    )
    for system in run_system(entry):
        with system.client as client:
            assert client.completions.create(model=entry.model_id, prompt="hello").choices[0].text == "hello"
            messages: Any = [{"role": "user", "content": "hello!"}]
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError, match="at most 6 tokens") as caught:
                    client.chat.completions.create(model=entry.model_id, messages=messages, stream=stream)
                assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def parameter_set(seed: int) -> dict[str, Any]:
    """Any combination of what a request may say, sometimes greedy, mostly seeded."""
    generator = random.Random(seed)
    choices: dict[str, list[Any]] = {
        "temperature": [0, 0.3, 0.9, 1.5],
        "top_p": [1, 0.9, 0.5],
        "max_tokens": [1, 2, 13, 40],
        "presence_penalty": [0, 0.7, -0.5],
        "frequency_penalty": [0, 0.7],
        "n": [1, 1, 1, 3],
        "stop": [None, "e", ["the", "w"], ["zzz"], "\n"],
        "seed": [seed],
    }
    extra: dict[str, list[Any]] = {
        "top_k": [0, 1, 5, 50],
        "min_tokens": [0, 0, 1],
        "repetition_penalty": [1, 1.2],
        "ignore_eos": [False, True],
    }
    picked = {name: generator.choice(values) for name, values in choices.items()}
    num_logprobs = generator.choice([None, 0, 2, 5])
    if seed % 2:
        picked["logprobs"] = num_logprobs
    elif num_logprobs is not None:
        picked |= {"logprobs": True, "top_logprobs": num_logprobs}
    return {**picked, "extra_body": {name: generator.choice(values) for name, values in extra.items()}}


Told = tuple[str, float, dict[str, float], int]
"""A token as a reply tells it: its text, its logprob, the likeliest ones, and its place in the text."""


def logprobs_of(parts: list[Any]) -> list[Told]:
    """Of a choice, or of all its chunks one after the other."""
    told: list[Told] = []
    for logprobs in (part.logprobs for part in parts if part.logprobs):
        if isinstance(logprobs, TextLogprobs):
            lists = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
            told += zip(*lists, strict=True)  # type: ignore[arg-type]
        else:
            for one in logprobs.content:
                told.append((one.token, one.logprob, {top.token: top.logprob for top in one.top_logprobs}, 0))
    return told


@pytest.mark.parametrize("seed", range(NUM_PARAMETER_SETS))
def test_a_stream_says_exactly_what_the_whole_reply_says(tiny: System, seed: int) -> None:
    parameters = parameter_set(seed)
    with tiny.client as client:
        create: Any
        if seed % 2:
            create, prompt = client.completions.create, {"prompt": "the quick brown fox"}
        else:
            create = client.chat.completions.create
            prompt = {"messages": [{"role": "user", "content": "the quick brown fox"}]}  # type: ignore[dict-item]
        whole = create(model=TINY, **prompt, **parameters)
        chunks = list(create(model=TINY, **prompt, **parameters, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(
        exclude={"prompt_tokens_details"}
    )
    for choice in whole.choices:
        streamed = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        texts = [part.text if seed % 2 else part.delta.content or "" for part in streamed]
        assert "".join(texts) == (choice.text if seed % 2 else choice.message.content)
        assert [part.finish_reason for part in streamed if part.finish_reason] == [choice.finish_reason]
        for told, expected in zip(logprobs_of(streamed), logprobs_of([choice]), strict=True):
            assert (told[0], told[3]) == (expected[0], expected[3])
            assert told[1] == pytest.approx(expected[1], abs=1e-3)
            assert told[2] == pytest.approx(expected[2], abs=1e-3)
        assert (choice.logprobs is None) == (parameters.get("logprobs") is None)
    if parameters.get("logprobs") is not None:
        assert sum(len(logprobs_of([choice])) for choice in whole.choices) == whole.usage.completion_tokens


def test_the_clients_own_accumulator_collects_the_logprobs_of_each_choice(tiny: System) -> None:
    fields: Any = {"model": TINY, "messages": [{"role": "user", "content": "every worker"}], "max_tokens": 16}
    fields |= {"n": 2, "seed": 3, "logprobs": True, "top_logprobs": 2}
    with tiny.client as client:
        whole = client.chat.completions.create(**fields)
        state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
        for chunk in client.chat.completions.create(**fields, stream=True):
            state.handle_chunk(chunk)
    for collected, expected in zip(state.current_completion_snapshot.choices, whole.choices, strict=True):
        assert collected.logprobs is not None
        assert expected.logprobs is not None
        tokens, expected_tokens = collected.logprobs.content or [], expected.logprobs.content or []
        assert [one.token for one in tokens] == [one.token for one in expected_tokens]
        assert [len(one.top_logprobs) for one in tokens] == [2] * len(tokens)
        data = bytes(byte for one in tokens for byte in one.bytes or [])
        assert data.decode(errors="replace") == collected.message.content


def test_the_same_seed_says_the_same_again(tiny: System) -> None:
    with tiny.client as client:
        texts = [
            client.completions.create(model=TINY, prompt="every worker", seed=seed, max_tokens=20).choices[0].text
            for seed in (5, 5, 6)
        ]
    assert texts[0] == texts[1] != texts[2]


def test_choices_of_one_request_differ_and_repeat_with_its_seed(tiny: System) -> None:
    def texts() -> list[str]:
        with tiny.client as client:
            reply = client.completions.create(model=TINY, prompt="there is", seed=9, n=3, max_tokens=20)
        return [choice.text for choice in reply.choices]

    assert texts() == texts()
    assert len(set(texts())) == 3


@pytest.mark.parametrize("stop", ["France", "is P", ".", "The", "Paris."])
def test_stops_are_never_shown_and_lose_no_text(smol: System, stop: str) -> None:
    question: Any = {"role": "user", "content": "What is the capital of France?"}
    with smol.client as client:
        full = client.chat.completions.create(model=smol.model, messages=[question], temperature=0, max_tokens=20)
        text = full.choices[0].message.content or ""
        assert stop in text
        chunks = list(
            client.chat.completions.create(
                model=smol.model, messages=[question], temperature=0, max_tokens=20, stop=stop, stream=True
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_is_out_of_the_engine_at_once(smol: System, streaming: bool) -> None:
    """From closing the socket to a free slot: at most 250 ms while decoding."""
    body = {"model": smol.model, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": streaming}
    for _ in range(5):
        host, port = smol.gateway.url.removeprefix("http://").split(":")
        request = httpx.Request("POST", f"{smol.gateway.url}/v1/completions", json=body)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(request.content)}\r\n\r\n".encode() + request.content)
            if streaming:
                assert connection.recv(100)
            deadline = time.monotonic() + 10
            while smol.worker.num_sequences != 1:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(0.2)
        left_at = time.monotonic()
        while smol.worker.num_sequences:
            assert time.monotonic() - left_at < 0.25
            time.sleep(0.002)


def test_adversarial_neighbours_change_nothing(smol: System) -> None:
    """A greedy answer is the same alone and beside requests with extreme parameters."""
    with smol.client as client:

        def answer() -> str:
            reply = client.completions.create(model=smol.model, prompt="Water is", temperature=0, max_tokens=12)
            return reply.choices[0].text

        alone = answer()
        extremes: Any = {"temperature": 2, "presence_penalty": 2, "extra_body": {"repetition_penalty": 10, "top_k": 1}}
        streams = [
            client.completions.create(model=smol.model, prompt=f"Noise {n}", max_tokens=40, stream=True, **extremes)
            for n in range(4)
        ]
        assert answer() == alone
        for stream in streams:
            stream.close()
