"""A model with sliding-window attention under llama.cpp: what is left of earlier sequences never misleads later ones.

llama.cpp gives the cells of tokens that no layer looks at any more to others, so a prefix may no longer be whole. Here
cells are so few that this happens. A fresh engine is the oracle, equal token for token, because prompts are cut into
chunks at the same places and lie in cells in order: with this file's types the same chunk then gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from model_registry.contract import (
    GenerationRequest,
    Prompt,
    SamplingParams,
    SequenceOutput,
    TextPrompt,
    TextSegment,
    TokenPrompt,
)
from model_registry.loader import ZOO, load_entry
from model_registry.schema import RegistryEntry
from workers.engine.engine import Engine
from workers.engine.runner import Chunk, StepPlan, Truncate
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel
from workers.runners.llama_library import llama_cpp
from workers.sources import default_cache_dir
from workers.sources.gguf_source import fetch_gguf_file

ENTRY = load_entry(ZOO / "hugginllam--gemma-3-270m-Q4_K_M-GGUF.yaml")
WINDOW = 512
NUM_CELLS = 848
CHUNK = 200
NUM_FORGOTTEN = 64
"""Tokens of a sequence that is forgotten to make room; its cells lie before those of the tested one."""
MAX_TOKENS = 8
TEXT = "The sun rises in the east and sets in the west. Water boils at a hundred degrees, and freezes at zero."

pytestmark = pytest.mark.timeout(600)  # the first test may have to fetch the model


@pytest.fixture(scope="module")
def loaded() -> tuple[LoadedModel, RegistryEntry]:
    values = ENTRY.model_dump(by_alias=True)
    threads = {"n_threads": 1, "n_threads_batch": 1}  # they wait by spinning, and tests share their cores
    values["model_config"]["initialization"]["initializer"]["model_init_kwargs"] = threads
    values["model_config"]["generation"] |= {
        "max_batch_size": 4,
        "max_batch_tokens": CHUNK,
        "max_model_len": NUM_CELLS,
        "kv_cache_tokens": NUM_CELLS,
    }
    entry = RegistryEntry.model_validate(values)
    return initializer_for(entry).load(entry, lambda _line: None), entry


@pytest.fixture
def engine(loaded: tuple[LoadedModel, RegistryEntry]) -> Engine:
    """A fresh engine, with nothing remembered, over the model loaded once."""
    return build_engine(loaded[1], loaded[0])


def text(content: str) -> TextPrompt:
    return TextPrompt((TextSegment(content, trusted=False),))


def noise(num_tokens: int, seed: int) -> tuple[int, ...]:
    """Tokens whose next one is not likely whatever the model has forgotten; no two begin alike."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1_000, 200_000, (num_tokens,), generator=generator).tolist())


def run(engine: Engine, prompt: Prompt, max_tokens: int = MAX_TOKENS) -> SequenceOutput:
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    engine.submit(engine.prepare(GenerationRequest(request_id="asked", prompt=prompt, sampling=sampling)))
    whole: SequenceOutput | None = None
    while engine.has_work:
        for output in engine.step():
            whole = whole.followed_by(output) if whole else output
    assert whole is not None
    return whole


def remember(engine: Engine, token_ids: tuple[int, ...]) -> None:
    """Compute exactly these tokens, then others that take the cells which llama.cpp no longer needs for them."""
    run(engine, TokenPrompt(noise(NUM_FORGOTTEN, seed=1)), max_tokens=1)
    run(engine, TokenPrompt(token_ids), max_tokens=1)
    num_free = NUM_CELLS - NUM_FORGOTTEN - len(token_ids)
    run(engine, TokenPrompt(noise(num_free + 16, seed=2)), max_tokens=1)


def num_cached(output: SequenceOutput) -> int:
    assert output.usage is not None
    return output.usage.cached_tokens


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    """llama-cpp-python's own class, told to compute as many tokens at a time."""
    path = fetch_gguf_file(ENTRY.model, default_cache_dir(), lambda _line: None)
    settings: dict[str, Any] = {"n_ctx": 256, "n_ubatch": 63, "n_threads": 1, "n_threads_batch": 1, "flash_attn": True}
    llama = llama_cpp.Llama(str(path), verbose=False, **settings)
    yield llama
    llama.close()


@pytest.mark.parametrize("content", ["1, 2, 3, 4, 5,", "Monday, Tuesday, Wednesday,", "def fibonacci(n):\n"])
def test_greedy_alone_equals_llama_cpps_own_class(engine: Engine, oracle: Any, content: str) -> None:
    expected = oracle.create_completion(content, temperature=0, max_tokens=MAX_TOKENS)["choices"][0]["text"]
    assert run(engine, text(content)).text == expected


def test_logits_are_the_same_bits_alone_and_close_among_others(loaded: tuple[LoadedModel, RegistryEntry]) -> None:
    runner, token_ids = loaded[0].runner, loaded[0].tokenizer.encode_prompt(text(TEXT))
    empty = [Truncate(slot, 0) for slot in range(8)]

    def alone() -> torch.Tensor:
        return runner.run(StepPlan([Chunk(token_ids, 0, [0], num_logits=1)], empty))[0].clone()

    first, second = alone(), alone()
    assert torch.equal(first, second)
    others = [Chunk(token_ids[slot:], 0, [slot], num_logits=0) for slot in range(1, 4)]
    runner.run(StepPlan([*others, Chunk(token_ids[:9], 0, [7], num_logits=0)], empty))
    decodes = [Chunk([5], chunk.end, list(chunk.block_ids), num_logits=1) for chunk in others]
    among = runner.run(StepPlan([*decodes, Chunk(token_ids[9:], 9, [7], num_logits=1)]))[-1]
    distance = 0.5 * (among.softmax(0) - first.softmax(0)).abs().sum()  # of two distributions: from 0 to 1
    assert distance < 0.1


def test_what_goes_on_past_the_window_is_found_again_and_reads_as_on_a_fresh_engine(
    engine: Engine, loaded: tuple[LoadedModel, RegistryEntry]
) -> None:
    before = noise(3 * CHUNK, seed=4)
    prompt = TokenPrompt((*before, *noise(32, seed=5)))
    remember(engine, before)
    output = run(engine, prompt)
    assert num_cached(output) == len(before)
    assert output.token_ids == run(build_engine(loaded[1], loaded[0]), prompt).token_ids


@pytest.mark.parametrize(("num_tokens", "cached"), [(WINDOW - 1, CHUNK), (WINDOW, 0), (3 * CHUNK, 0)])
def test_a_shorter_beginning_is_used_only_while_llama_cpp_has_all_of_it(
    engine: Engine, loaded: tuple[LoadedModel, RegistryEntry], num_tokens: int, cached: int
) -> None:
    before = noise(num_tokens, seed=6)
    prompt = TokenPrompt((*before[:CHUNK], *noise(32, seed=7)))
    remember(engine, before)
    output = run(engine, prompt)
    assert output.token_ids == run(build_engine(loaded[1], loaded[0]), prompt).token_ids
    assert num_cached(output) == cached
