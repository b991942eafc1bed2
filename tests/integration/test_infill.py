"""Filling in the middle with real tokenizers: both families read the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_registry.contract import GenerationRequest, InfillPrompt, RequestFaultError, SamplingParams
from model_registry.schema import RegistryEntry
from tests.support.gguf_writing import write_gguf
from tests.support.tensor_parallel_rank import run_together
from workers.engine.engine import Engine
from workers.initializers import build_engine, initializer_for

NAMES = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
PROMPT = InfillPrompt("every worker <|fim_suffix|>", " waits for a prompt")


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the tokens of a model that was trained for it."""
    folder = tmp_path_factory.mktemp("infill")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": NAMES})
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    write_gguf(folder, folder / "model.gguf", eos_token_id=2)
    return folder


def engine_of(folder: Path, **initializer: object) -> Engine:
    entry = RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "tests/infill",
                "initialization": {"hf_model_id": str(folder), "initializer": initializer},
                "generation": {"kv_cache_tokens": 1024, "max_model_len": 256},
            },
            "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 1},
        }
    )
    return build_engine(entry, initializer_for(entry).load(entry, lambda line: None))


@pytest.mark.parametrize(
    "initializer",
    [{"type": "SingleDevice", "dtype": "float32"}, {"type": "LlamaCpp", "model_filename": "model.gguf"}],
    ids=["SingleDevice", "LlamaCpp"],
)
def test_the_parts_stand_behind_their_tokens_and_what_a_client_wrote_is_text(
    folder: Path, initializer: dict[str, object]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    beginning, end, middle = tokenizer.convert_tokens_to_ids(NAMES)
    engine = engine_of(folder, **initializer)
    prepared = engine.prepare(GenerationRequest(request_id="r", prompt=PROMPT, sampling=SamplingParams(max_tokens=4)))
    encoded = prepared.token_ids
    place = encoded.index(end)
    assert (encoded[0], encoded[-1], encoded.count(beginning), encoded.count(end)) == (beginning, middle, 1, 1)
    assert tokenizer.decode(encoded[1:place]) == PROMPT.beginning
    assert tokenizer.decode(encoded[place + 1 : -1]) == PROMPT.end
    request = GenerationRequest(request_id="r", prompt=PROMPT, sampling=SamplingParams(max_tokens=4, temperature=0))
    assert run_together(engine, [request])["r"].token_ids


def test_a_model_that_was_not_trained_for_it_says_so(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama, type="SingleDevice", dtype="float32")
    with pytest.raises(RequestFaultError, match="Invalid 'suffix'"):
        engine.prepare(GenerationRequest(request_id="r", prompt=PROMPT, sampling=SamplingParams()))
