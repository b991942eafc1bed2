"""The torch sampler against plain references, row by row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from model_registry.contract import GenerationRequest, SamplingParams, TokenPrompt
from workers.engine.sequence import Sequence
from workers.engine.text_stream import TextStream
from workers.runners import sampling
from workers.runners.sampling import TorchSampler

VOCAB_SIZE = 50


def sequence(generated: tuple[int, ...] = (), **params: Any) -> Sequence:
    """A sequence with the prompt 3, 4 that has generated some tokens."""
    prompt = [3, 4]
    request = GenerationRequest(
        request_id="r",
        prompt=TokenPrompt(tuple(prompt)),
        sampling=SamplingParams(**params),
    )
    made = Sequence(
        request=request,
        token_ids=prompt.copy(),
        num_prompt_tokens=len(prompt),
        max_tokens=100,
        end_token_ids=frozenset({0}),
        text_stream=TextStream(lambda ids: "", prompt, request.sampling),
    )
    for token_id in generated:
        made.append(token_id)
    return made


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def draws(row: torch.Tensor, num_draws: int, **params: Any) -> Counter[int]:
    """How often each token is chosen over many seeds."""
    counts: Counter[int] = Counter()
    for seed in range(num_draws):
        (token,) = TorchSampler().sample(row.clone()[None], [sequence(seed=seed, **params)])
        assert isinstance(token, int)
        counts[token] += 1
    return counts


def test_temperature_zero_takes_the_likeliest() -> None:
    rows = torch.stack([logits(1), logits(2)])
    expected = rows.argmax(dim=-1).tolist()
    assert TorchSampler().sample(rows, [sequence(temperature=0), sequence(temperature=0)]) == expected


@pytest.mark.parametrize("temperature", [1e-40, 1e-38, 1e-6, 1e-5])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_smallest_temperatures_take_the_likeliest(temperature: float, top_p: float) -> None:
    row = logits(4)
    assert draws(row, 5, temperature=temperature, top_p=top_p) == {int(row.argmax()): 5}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_plain_sampling_follows_the_softmax(temperature: float) -> None:
    row = logits()
    probabilities = torch.softmax(row / temperature, dim=-1)
    counts = draws(row, 4_000, temperature=temperature)
    frequencies = torch.tensor([counts[token_id] / 4_000 for token_id in range(VOCAB_SIZE)])
    assert float((frequencies - probabilities).abs().max()) < 0.03


def reference_kept(row: torch.Tensor, top_k: int | None, top_p: float) -> set[int]:
    """Top-k, then top-p over what is left, token by token as it is defined."""
    ranked = sorted(range(VOCAB_SIZE), key=lambda token_id: -float(row[token_id]))[: top_k or VOCAB_SIZE]
    probabilities = torch.softmax(row.double(), dim=-1)
    total = sum(float(probabilities[token_id]) for token_id in ranked)
    kept: set[int] = set()
    mass = 0.0
    for token_id in ranked:
        if mass >= top_p * total:
            break
        kept.add(token_id)
        mass += float(probabilities[token_id])
    return kept


@pytest.mark.parametrize("num_candidates", [4, 1024])
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (5, 1.0), (None, 0.6), (None, 0.95), (10, 0.5), (None, 1e-6)])
def test_top_k_and_top_p_keep_exactly_what_their_definition_keeps(
    monkeypatch: pytest.MonkeyPatch, num_candidates: int, top_k: int | None, top_p: float
) -> None:
    monkeypatch.setattr(sampling, "NUM_CANDIDATES", num_candidates)
    row = logits(3)
    ids, probabilities = sampling._likeliest(row, SamplingParams(top_k=top_k, top_p=top_p))
    assert set(ids.tolist()) == reference_kept(row, top_k, top_p)
    assert torch.allclose(probabilities, torch.softmax(row.double(), dim=-1)[ids], atol=1e-6)


def test_repetition_penalty_divides_likely_and_multiplies_unlikely_logits_of_prompt_and_answer() -> None:
    row = torch.full((VOCAB_SIZE,), -1.0)
    row[3], row[7], row[9] = 2.0, 1.5, 1.4
    made = sequence((7,), repetition_penalty=2.0, temperature=0)
    assert TorchSampler().sample(row[None], [made]) == [9]
    assert row[3] == 1.0
    assert row[7] == 0.75
    assert row[4] == -2.0


def test_frequency_and_presence_penalties_count_the_answer_only() -> None:
    row = torch.zeros(VOCAB_SIZE)
    made = sequence((7, 7, 9), frequency_penalty=0.5, presence_penalty=0.25, temperature=0)
    TorchSampler().sample(row[None], [made])
    assert (row[7], row[9], row[3]) == (-1.25, -0.75, 0.0)


def test_no_end_and_no_stop_token_before_min_tokens() -> None:
    row = torch.zeros(VOCAB_SIZE)
    row[0], row[5], row[6] = 9.0, 8.0, 1.0
    early = sequence((1,), min_tokens=2, stop_token_ids=(5,), temperature=0)
    assert TorchSampler().sample(row.clone()[None], [early]) == [6]
    late = sequence((1, 1), min_tokens=2, stop_token_ids=(5,), temperature=0)
    assert TorchSampler().sample(row.clone()[None], [late]) == [0]


def test_logits_that_are_not_finite_fail_their_own_row_only() -> None:
    rows = torch.stack([logits(1), torch.full((VOCAB_SIZE,), torch.nan), logits(2)])
    expected = rows.argmax(dim=-1).tolist()
    tokens = TorchSampler().sample(rows, [sequence(temperature=0) for _ in range(3)])
    assert isinstance(tokens[1], ArithmeticError)
    assert (tokens[0], tokens[2]) == (expected[0], expected[2])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    params = {"temperature": 0.9, "top_p": 0.9, "seed": 5, "frequency_penalty": 0.3}
    alone = TorchSampler().sample(logits(1)[None], [sequence((7,), **params)])
    rows = torch.stack([logits(2), logits(1), logits(3)])
    among = TorchSampler().sample(rows, [sequence(seed=1), sequence((7,), **params), sequence(temperature=0)])
    assert among[1] == alone[0]
