"""The torch sampler against plain references, row by row."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from model_registry.contract import FaultKind, GenerationRequest, RequestFaultError, SamplingParams, TokenPrompt
from workers.engine.constraint import TokenConstraint
from workers.engine.sampler import RawLogprobs, SampledToken
from workers.engine.sequence import Sequence
from workers.engine.text_stream import TextStream
from workers.runners import drawing
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


def sample(rows: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """The tokens that are chosen, where no row fails."""
    return [token.token_id for token in tokens_of(rows, sequences)]


def tokens_of(rows: torch.Tensor, sequences: list[Sequence]) -> list[SampledToken]:
    sampled = TorchSampler().sample(rows, sequences, range(len(sequences)))
    return [token for token in sampled if isinstance(token, SampledToken)]


def draws(row: torch.Tensor, num_draws: int, **params: Any) -> Counter[int]:
    """How often each token is chosen over many seeds."""
    counts: Counter[int] = Counter()
    for seed in range(num_draws):
        (token,) = sample(row.clone()[None], [sequence(seed=seed, **params)])
        counts[token] += 1
    return counts


def test_temperature_zero_takes_the_likeliest() -> None:
    rows = torch.stack([logits(1), logits(2)])
    expected = rows.argmax(dim=-1).tolist()
    assert sample(rows, [sequence(temperature=0), sequence(temperature=0)]) == expected


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


def reference_kept(row: torch.Tensor, top_k: int | None, top_p: float) -> dict[int, float]:
    """Top-k, then top-p over what is left, token by token as it is defined; each with its probability."""
    ranked = sorted(range(VOCAB_SIZE), key=lambda token_id: (-float(row[token_id]), token_id))[: top_k or VOCAB_SIZE]
    probabilities = torch.softmax(row.double(), dim=-1)
    total = sum(float(probabilities[token_id]) for token_id in ranked)
    kept: dict[int, float] = {}
    for token_id in ranked:
        if sum(kept.values()) >= top_p * total:
            break
        kept[token_id] = float(probabilities[token_id])
    return kept


TRUNCATIONS = [
    (1, 1.0), (5, 1.0), (None, 0.6), (None, 0.95), (10, 0.5), (None, 1e-6), (49, 0.999), (1000, 0.9),
    *((top_k, top_p) for top_k in (6, 13, 20, 35) for top_p in (0.1, 0.2, 0.3, 0.4, 0.7)),
]  # fmt: skip
PEAKED = logits(3)
PEAKED[[5, 30, 17, 44]] = float(PEAKED[5])  # equals, in the order of their ids
FLAT = PEAKED * 0.1
BOTH = pytest.mark.parametrize("row", [PEAKED, FLAT], ids=["peaked", "flat"])


@BOTH
@pytest.mark.parametrize("num_candidates", [(), (4,), (4, 12), (49,)])
def test_every_token_that_top_k_and_top_p_keep_is_drawn_where_its_probability_lies(
    monkeypatch: pytest.MonkeyPatch, num_candidates: tuple[int, ...], row: torch.Tensor
) -> None:
    """All cases are one batch, which has more rows than are drawn from at a time."""
    monkeypatch.setattr(drawing, "NUM_CANDIDATES", num_candidates)
    expected, draws, made = [], [], []
    for top_k, top_p in TRUNCATIONS:
        kept = reference_kept(row, top_k, top_p)
        below = 0.0
        for token_id, probability in kept.items():
            expected.append(token_id)
            draws.append((below + probability / 2) / sum(kept.values()))
            made.append(sequence(top_k=top_k, top_p=top_p))
            below += probability
    numbers = iter(draws)
    monkeypatch.setattr(Sequence, "draw", lambda _: next(numbers))
    assert len(made) > 3 * drawing.MAX_ROWS_ON_CPU
    assert sample(row.repeat(len(made), 1), made) == expected


@BOTH
@pytest.mark.parametrize("num_candidates", [(), (2,), (10,), (4, 12)])
def test_nothing_else_is_ever_drawn(
    monkeypatch: pytest.MonkeyPatch, num_candidates: tuple[int, ...], row: torch.Tensor
) -> None:
    monkeypatch.setattr(drawing, "NUM_CANDIDATES", num_candidates)
    for top_k, top_p in TRUNCATIONS:
        kept = [*reference_kept(row, top_k, top_p)]
        for number, token_id in ((0.0, kept[0]), (1 - 2**-53, kept[-1])):
            monkeypatch.setattr(Sequence, "draw", lambda _, number=number: number)
            assert sample(row.clone()[None], [sequence(top_k=top_k, top_p=top_p)]) == [token_id]


def test_repetition_penalty_divides_likely_and_multiplies_unlikely_logits_of_prompt_and_answer() -> None:
    row = torch.full((VOCAB_SIZE,), -1.0)
    row[3], row[7], row[9] = 2.0, 1.5, 1.4
    made = sequence((7,), repetition_penalty=2.0, temperature=0)
    assert sample(row[None], [made]) == [9]
    assert row[3] == 1.0
    assert row[7] == 0.75
    assert row[4] == -2.0


def test_frequency_and_presence_penalties_count_the_answer_only() -> None:
    row = torch.zeros(VOCAB_SIZE)
    made = sequence((7, 7, 9), frequency_penalty=0.5, presence_penalty=0.25, temperature=0)
    sample(row[None], [made])
    assert (row[7], row[9], row[3]) == (-1.25, -0.75, 0.0)


def test_no_end_and_no_stop_token_before_min_tokens() -> None:
    row = torch.zeros(VOCAB_SIZE)
    row[0], row[5], row[6] = 9.0, 8.0, 1.0
    early = sequence((1,), min_tokens=2, stop_token_ids=(5,), temperature=0)
    assert sample(row.clone()[None], [early]) == [6]
    late = sequence((1, 1), min_tokens=2, stop_token_ids=(5,), temperature=0)
    assert sample(row.clone()[None], [late]) == [0]


def test_logits_that_are_not_finite_fail_their_own_row_only() -> None:
    rows = torch.stack([logits(1), torch.full((VOCAB_SIZE,), torch.nan), logits(2)])
    expected = rows.argmax(dim=-1).tolist()
    tokens = TorchSampler().sample(rows, [sequence(temperature=0, num_logprobs=2) for _ in range(3)], range(3))
    assert isinstance(tokens[1], ArithmeticError)
    assert [token.token_id for token in tokens if isinstance(token, SampledToken)] == [expected[0], expected[2]]


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1.7, "min_p": 0.05},
    {"top_p": 0.9},
    {"top_k": 3, "temperature": 0.6},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.01},
    {"frequency_penalty": 0.3, "logit_bias": {4: 2.5, 11: -100.0}},
    {"presence_penalty": -1.5, "repetition_penalty": 1.3},
    {"min_tokens": 9, "num_logprobs": 3},
    {"num_logprobs": 0, "logit_bias": {0: 100.0}, "min_tokens": 9},
]


@pytest.mark.parametrize("constraint", [None, (0, 3, 8, 21, 40)])
def test_a_row_does_not_depend_on_its_neighbours(constraint: tuple[int, ...] | None) -> None:
    """Every parameter beside every other: each row's token and logprobs are those that it has alone."""

    def made(seed: int) -> Sequence:
        one = sequence((7, 7, 9), seed=seed, **PARAMETERS[seed % len(PARAMETERS)])
        one.constraint = None if constraint is None or seed % 3 else Allowed(*constraint)
        return one

    seeds = range(4 * len(PARAMETERS))
    alone = [tokens_of(logits(seed)[None], [made(seed)])[0] for seed in seeds]
    assert tokens_of(torch.stack([*map(logits, seeds)]), [*map(made, seeds)]) == alone
    assert len({token.token_id for token in alone}) > 10


def test_of_more_rows_those_that_are_named_are_sampled() -> None:
    rows = torch.stack([logits(seed) for seed in range(4)])
    expected = rows.argmax(dim=-1).tolist()
    tokens = TorchSampler().sample(rows, [sequence(temperature=0), sequence(temperature=0)], [1, 3])
    assert [token.token_id for token in tokens if isinstance(token, SampledToken)] == [expected[1], expected[3]]


def raw_logprobs(row: torch.Tensor, made: Sequence) -> RawLogprobs:
    (token,) = tokens_of(row.clone()[None], [made])
    assert token.logprobs is not None
    return token.logprobs


@pytest.mark.parametrize("num_logprobs", [0, 1, 20, VOCAB_SIZE, VOCAB_SIZE + 5])
def test_logprobs_are_the_log_softmax_of_the_raw_row_whatever_sampling_makes_of_it(num_logprobs: int) -> None:
    row = logits(6)
    expected = torch.log_softmax(row.double(), dim=-1)
    changing = {"temperature": 1.7, "top_k": 3, "frequency_penalty": 2.0, "repetition_penalty": 3.0, "min_tokens": 9}
    made = sequence((7, int(row.argmax())), seed=3, num_logprobs=num_logprobs, **changing)
    (token,) = tokens_of(row.clone()[None], [made])
    assert token.logprobs is not None
    assert token.logprobs.chosen == pytest.approx(float(expected[token.token_id]), abs=1e-5)
    ranked = sorted(range(VOCAB_SIZE), key=lambda token_id: -float(row[token_id]))[:num_logprobs]
    assert [token_id for token_id, _ in token.logprobs.top] == ranked
    assert [value for _, value in token.logprobs.top] == pytest.approx(expected[ranked].tolist(), abs=1e-5)


@pytest.mark.parametrize("num_logprobs", [1, 2, 3, 4, 6])
def test_equally_likely_tokens_are_told_by_id_wherever_the_list_ends(num_logprobs: int) -> None:
    row = torch.zeros(VOCAB_SIZE)
    row[[40, 9, 33, 21]] = 2.0
    row[12] = 3.0
    top = raw_logprobs(row, sequence(num_logprobs=num_logprobs)).top
    assert [token_id for token_id, _ in top] == [12, 9, 21, 33, 40, 0][:num_logprobs]


def test_logprobs_do_not_depend_on_neighbours_nor_on_what_these_want() -> None:
    alone = raw_logprobs(logits(1), sequence(seed=5, num_logprobs=4))
    rows = torch.stack([logits(2), logits(1), logits(3)])
    among = tokens_of(rows, [sequence(num_logprobs=20), sequence(seed=5, num_logprobs=4), sequence()])
    assert among[1].logprobs == alone
    assert among[2].logprobs is None


def test_wanting_logprobs_does_not_change_the_tokens() -> None:
    params = {"temperature": 0.9, "seed": 5, "repetition_penalty": 1.5}
    plain = sample(logits(1)[None], [sequence((7,), **params)])
    assert sample(logits(1)[None], [sequence((7,), num_logprobs=20, **params)]) == plain


def test_nothing_is_computed_for_those_who_want_no_logprobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("log_softmax costs time")

    monkeypatch.setattr(torch, "log_softmax", fail)
    sample(logits(1)[None], [sequence()])
    with pytest.raises(AssertionError, match="costs time"):
        sample(logits(1)[None], [sequence(num_logprobs=0)])


class Allowed:
    """A constraint that allows these tokens next."""

    is_complete = False
    end_token_ids = frozenset({0})

    def __init__(self, *token_ids: int) -> None:
        self._token_ids = token_ids

    def mask(self) -> bytes:
        bits = sum(1 << token_id for token_id in self._token_ids)
        return bits.to_bytes(-(-VOCAB_SIZE // 32) * 4, "little")

    def accept(self, token_id: int) -> None: ...


class TooLarge(Allowed):
    def mask(self) -> bytes:
        raise RequestFaultError(FaultKind.INVALID_REQUEST, "the grammar is too large")


def constrained(constraint: TokenConstraint, **params: Any) -> Sequence:
    made = sequence(**params)
    made.constraint = constraint
    return made


@pytest.mark.parametrize("params", [{}, {"top_k": 40}, {"top_p": 0.99}, {"min_p": 0.01}, {"temperature": 0}])
def test_only_what_a_constraint_allows_is_chosen(params: dict[str, Any]) -> None:
    allowed = {int(one) for one in logits(3).argsort()[:3]}
    for seed in range(30):
        (token,) = sample(logits(3)[None], [constrained(Allowed(*allowed), seed=seed, **params)])
        assert token in allowed


def test_a_bias_brings_nothing_back_and_an_end_comes_before_its_time_only_where_nothing_else_may() -> None:
    rows = torch.stack([logits()] * 3)
    biased = constrained(Allowed(7, 8), temperature=0, logit_bias={9: 100.0})
    early, alone = (constrained(Allowed(*ids), temperature=0, min_tokens=2) for ids in ((0, 9), (0,)))
    assert sample(rows, [biased, early, alone])[1:] == [9, 0]
    assert sample(torch.stack([logits()]), [biased]) in ([7], [8])


def test_a_constraint_changes_no_logprob_and_fails_its_own_row_alone() -> None:
    rows = torch.stack([logits()] * 3)
    plain, bound = sequence(temperature=0, num_logprobs=2), constrained(Allowed(7), temperature=0, num_logprobs=2)
    first, second, third = TorchSampler().sample(rows, [plain, bound, constrained(TooLarge(), temperature=0)], range(3))
    assert isinstance(first, SampledToken)
    assert isinstance(second, SampledToken)
    assert second.token_id == 7
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert first.logprobs.top == second.logprobs.top
    assert isinstance(third, RequestFaultError)


def test_ignore_eos_keeps_an_end_away_as_long_as_something_else_may_come() -> None:
    likely_end = logits()
    likely_end[0] = 100.0
    endless = {"temperature": 0, "ignore_eos": True}
    assert sample(likely_end[None].clone(), [constrained(Allowed(0, 9), **endless)]) == [9]
    assert sample(likely_end[None].clone(), [constrained(Allowed(0), **endless)]) == [0]


def test_how_likely_a_prompt_was_is_not_told_of_logits_that_are_not_finite() -> None:
    with pytest.raises(ArithmeticError):
        TorchSampler().logprobs(torch.full((1, VOCAB_SIZE), torch.nan), [3], 0)
