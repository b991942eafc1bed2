"""The main job: one command serves a real model, through Ray, to the openai client, curl and Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types import CompletionChoice
from openai.types.chat import ChatCompletionUserMessageParam
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "What is the capital of France?"}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client as client:
        yield client


def test_every_slow_step_is_announced_and_the_end_says_what_to_try(server: Server) -> None:
    server.wait_until(lambda: "Try it" in server.output, timeout_s=10)
    output = server.output
    for announced in ("Ray", "loading weights", f"{server.url}", "curl -N", "openai"):
        assert announced in output


def test_the_openai_client_gets_an_answer(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0)
    assert "Paris" in (completion.choices[0].message.content or "")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_the_openai_client_gets_the_same_answer_as_a_stream(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0)
    stream = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0, stream=True)
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5


async def test_the_async_client_gets_completions_and_streams(server: Server) -> None:
    async with server.async_client as client:
        whole = await client.completions.create(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=12)
        stream = await client.completions.create(
            model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=12, stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12


def test_several_prompts_are_one_batch_in_which_each_says_what_it_says_alone(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The capital of France is", "Water boils at"]
    fields: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    alone = [client.completions.create(prompt=prompt, **fields) for prompt in prompts]
    together = client.completions.create(prompt=prompts, n=2, **fields)
    assert [choice.index for choice in together.choices] == list(range(6))
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone for _ in range(2)]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert together.usage.completion_tokens == 6 * 8
    texts = [""] * 3
    for chunk in client.completions.create(prompt=prompts, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [one.choices[0].text for one in alone]


def test_token_ids_are_a_prompt_and_those_that_do_not_exist_are_refused(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    one = client.completions.create(prompt=[504, 3575, 282, 4649, 314], **fields)
    two = client.completions.create(prompt=[[504, 3575, 282, 4649, 314], [504]], **fields)
    assert one.usage is not None
    assert one.usage.prompt_tokens == 5
    assert one.choices[0].text == two.choices[0].text != two.choices[1].text
    with pytest.raises(openai.BadRequestError, match="vocabulary") as refused:
        client.completions.create(prompt=[[504], [49_152]], **fields)
    assert refused.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="token 49152 is outside") as refused:
        client.completions.create(prompt="Hi", logit_bias={"49152": 1}, **fields)
    assert refused.value.param == "logit_bias"


def test_the_best_of_several_is_the_likeliest_by_token(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "My favourite", "temperature": 1.2, "seed": 3, "max_tokens": 8}
    made = client.completions.create(n=4, logprobs=0, **fields)
    best = client.completions.create(n=1, best_of=4, **fields)

    def mean_logprob(choice: CompletionChoice) -> float:
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        return statistics.fmean(choice.logprobs.token_logprobs)

    assert len({choice.text for choice in made.choices}) == 4
    assert best.choices[0].text == max(made.choices, key=mean_logprob).text
    assert best.choices[0].logprobs is None
    assert made.usage is not None
    assert best.usage is not None
    assert best.usage.completion_tokens == made.usage.completion_tokens


def test_curl_sees_server_sent_events(server: Server) -> None:
    body = {"model": MODEL, "messages": [QUESTION], "temperature": 0, "stream": True}
    command = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-d", json.dumps(body)]
    output = subprocess.run(
        [*command, "-H", "Content-Type: application/json"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    events = output.split("\n\n")
    assert all(event.startswith(("data: ", ": ping")) for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-2] if event.startswith("data: ")]
    assert deltas[0]["role"] == "assistant"
    assert "Paris" in "".join(delta.get("content", "") for delta in deltas)


def test_what_the_readme_shows_works(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text().replace("http://127.0.0.1:8000", server.url)
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "Paris" in capsys.readouterr().out
    (command,) = re.findall(r"^\$ (curl .*?)\n```", readme, re.DOTALL | re.MULTILINE)
    output = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "Paris" in json.loads(output)["choices"][0]["message"]["content"]


def test_a_short_request_finishes_before_seven_long_ones_that_started_first(server: Server) -> None:
    async def run() -> list[str]:
        finished: list[str] = []
        async with server.async_client as client:

            async def complete(name: str, num_tokens: int) -> None:
                await client.completions.create(
                    model=MODEL,
                    prompt=f"Story {name}:",
                    max_tokens=num_tokens,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                )
                finished.append(name)

            long = [asyncio.create_task(complete(f"long {number}", 80)) for number in range(7)]
            await asyncio.sleep(1)
            await complete("short", 10)
            assert finished == ["short"]
            await asyncio.gather(*long)
        return finished

    assert len(asyncio.run(run())) == 8


def test_prometheus_can_scrape_what_happened(client: openai.OpenAI, server: Server) -> None:
    client.chat.completions.create(model=MODEL, messages=[QUESTION], max_tokens=5)
    text = httpx.get(f"{server.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    finished = [
        sample.value
        for sample in families["aviary_requests"].samples
        if sample.name == "aviary_requests_total" and sample.labels.get("model") == MODEL
    ]
    assert sum(finished) >= 1
    assert any(sample.value > 0 for sample in families["aviary_time_to_first_token_seconds"].samples)


def test_the_model_is_listed_and_described(client: openai.OpenAI, server: Server) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    assert server.model(MODEL)["max_model_len"] == 8192


def test_a_prompt_longer_than_the_context_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="word " * 9000, max_tokens=5)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "prompt"


def test_ctrl_c_ends_it_and_everything_it_started(start: Callable[..., Server]) -> None:
    """Runs last: it ends a server of its own, with the model already prepared."""
    server = start()
    processes = server.processes()
    assert len(processes) > 3
    assert server.interrupt() == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_runs(process) for process in processes):
        time.sleep(0.1)
    assert [process.pid for process in processes if _runs(process)] == []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
