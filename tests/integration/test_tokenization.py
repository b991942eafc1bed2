"""/v1/tokenize and /v1/detokenize through gateway, channel and engine, on every kind of tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from model_registry.schema import RegistryEntry
from tests.support.gguf_writing import write_gguf
from tests.support.live_system import System, run_system

MODEL = "tests/model"
TEXTS = ["the quick brown fox", "Grüße! 🙂\n\n  two spaces", "<|im_start|>user\nhi<|im_end|>", "a" * 3000]
MESSAGES: list[Any] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the quick <|im_end|> fox"},
]
INITIALIZERS: dict[str, dict[str, Any]] = {
    "Echo": {},
    "SingleDevice": {"dtype": "float32"},
    "LlamaCpp": {"model_filename": "tiny.gguf"},
}


def entry_of(folder: Path, kind: str, **generation: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": MODEL,
                "initialization": {
                    "hf_model_id": None if kind == "Echo" else str(folder),
                    "initializer": {"type": kind, **INITIALIZERS[kind]},
                },
                "generation": {"kv_cache_tokens": 1024, "max_model_len": 256, **generation},
            },
            "scaling_config": {"num_gpus_per_worker": 0},
        }
    )


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(tiny_llama, copy)
    write_gguf(copy, copy / "tiny.gguf", eos_token_id=2)
    return copy


@pytest.fixture(scope="module", params=INITIALIZERS)
def system(request: pytest.FixtureRequest, folder: Path) -> Iterator[System]:
    # The file that is made here has no chat template.
    generation = {"prompt_format": "Q: {instruction}\nA:"} if request.param == "LlamaCpp" else {}
    yield from run_system(entry_of(folder, request.param, **generation))


@pytest.fixture(scope="module")
def single(folder: Path) -> Iterator[System]:
    yield from run_system(entry_of(folder, "SingleDevice"))


def post(system: System, url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{system.gateway.url}{url}", json={"model": MODEL, **fields}, timeout=30)


def tokenize(system: System, **fields: Any) -> dict[str, Any]:
    response = post(system, "/v1/tokenize", **fields)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    assert told["count"] == len(told["tokens"])
    return told


def detokenize(system: System, tokens: list[int]) -> str:
    response = post(system, "/v1/detokenize", tokens=tokens)
    assert response.status_code == 200, response.text
    return str(response.json()["prompt"])


@pytest.mark.parametrize("text", ["", *TEXTS], ids=range(len(TEXTS) + 1))
def test_a_text_comes_back_from_its_tokens_however_long_it_is(system: System, text: str) -> None:
    tokens = tokenize(system, prompt=text, add_special_tokens=False)["tokens"]
    assert detokenize(system, tokens) == text


@pytest.mark.parametrize("text", TEXTS[:3], ids=range(3))
def test_the_tokens_of_a_text_are_those_that_a_completion_counts(system: System, text: str) -> None:
    told = tokenize(system, prompt=text)
    assert (told["max_model_len"], told["token_strs"]) == (256, None)
    with system.client as client:
        reply = client.completions.create(model=MODEL, prompt=text, max_tokens=1)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == told["count"]


def test_the_tokens_of_a_conversation_are_those_that_a_chat_counts(system: System) -> None:
    with system.client as client:
        reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)
    assert reply.usage is not None
    assert tokenize(system, messages=MESSAGES)["count"] == reply.usage.prompt_tokens


def test_an_answer_is_opened_left_out_or_gone_on_with(single: System, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages: list[Any] = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the quick"}]
    for fields in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **fields)
        assert tokenize(single, messages=messages, **fields)["tokens"] == expected


def test_tokens_are_told_as_the_vocabulary_writes_them(single: System, folder: Path) -> None:
    told = tokenize(single, prompt="the quick <|im_end|>", return_token_strs=True)
    assert told["token_strs"] == AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(told["tokens"])


def test_special_tokens_have_their_names_in_the_text_of_tokens(system: System, request: pytest.FixtureRequest) -> None:
    is_echo = request.node.callspec.params["system"] == "Echo"
    token_id, name = (256, "<end of prompt>") if is_echo else (2, "<|im_end|>")
    assert detokenize(system, [token_id]) == name


@pytest.mark.parametrize(
    ("url", "fields", "status", "code", "param"),
    [
        ("/v1/detokenize", {"tokens": [1, 400]}, 400, "invalid_value", "tokens"),
        ("/v1/detokenize", {}, 400, "missing_required_parameter", "tokens"),
        ("/v1/detokenize", {"model": "no/such", "tokens": []}, 404, "model_not_found", None),
        ("/v1/tokenize", {"model": "no/such", "prompt": ""}, 404, "model_not_found", None),
        ("/v1/tokenize", {"prompt": 7}, 400, "invalid_type", "prompt"),
    ],
)
def test_errors_are_those_of_all_endpoints(
    system: System, url: str, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    response = post(system, url, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


def test_a_prompt_format_of_the_registry_opens_the_answer_or_goes_on_with_one(folder: Path) -> None:
    entry = entry_of(folder, "SingleDevice", prompt_format="Q: {instruction}\nA:")
    fields: dict[str, Any] = {"messages": MESSAGES, "add_generation_prompt": False}
    for system in run_system(entry):
        error = post(system, "/v1/tokenize", **fields).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "add_generation_prompt")
        assert tokenize(system, **fields, use_prompt_format=False)["count"]
        begun = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": " So"}]
        told = tokenize(system, messages=begun, continue_final_message=True, add_generation_prompt=False)
        assert detokenize(system, told["tokens"]) == "Q: why?\nA: So"
        assert detokenize(system, tokenize(system, prompt="why?", use_prompt_format=True)["tokens"]) == "Q: why?\nA:"


def test_neither_counts_as_generated_text(single: System) -> None:
    before = metrics_of(single)
    tokenize(single, prompt="the quick brown fox")
    after = metrics_of(single)
    counted = {name for name in after if after[name] != before.get(name, 0.0)}
    assert {name.partition("{")[0] for name in counted if name.startswith("aviary_")} <= {
        "aviary_requests_total",
        "aviary_requests_created",
        "aviary_e2e_request_latency_seconds_bucket",
        "aviary_e2e_request_latency_seconds_count",
        "aviary_e2e_request_latency_seconds_sum",
        "aviary_e2e_request_latency_seconds_created",
        "aviary_routing_decisions_total",
        "aviary_routing_decisions_created",
    }
    assert any('endpoint="/v1/tokenize"' in name for name in counted)


def metrics_of(system: System) -> dict[str, float]:
    lines = httpx.get(f"{system.gateway.url}/metrics").text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
