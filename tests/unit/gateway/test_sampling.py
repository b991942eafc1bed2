"""A request's parameters over the registry's defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.protocol.completions import CompletionRequest
from gateway.sampling import sampling_params
from model_registry.contract import SamplingParams
from tests.support.scripted_pool import entry


def merged(fields: dict[str, Any] | None = None, **generation: Any) -> tuple[SamplingParams, ...]:
    body = {"model": "m", "prompt": "p"} | (fields or {})
    request = CompletionRequest.parse(json.dumps(body).encode(), max_choices=8)
    return sampling_params(request, entry(**generation), max_tokens=request.max_tokens, default_max_tokens=16)


def test_without_anything_said_sampling_is_openais() -> None:
    assert merged() == (SamplingParams(max_tokens=16, max_tokens_is_default=True),)


def test_the_registrys_defaults_hold_where_the_request_says_nothing() -> None:
    kwargs = {"temperature": 0.1, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1, "max_new_tokens": 512}
    (params,) = merged(generate_kwargs=kwargs | {"min_new_tokens": 16})
    assert params == SamplingParams(
        temperature=0.1, top_p=0.9, top_k=5, repetition_penalty=1.1,
        max_tokens=512, max_tokens_is_default=True, min_tokens=16,
    )  # fmt: skip


def test_the_request_overrides_every_default() -> None:
    kwargs = {"temperature": 0.1, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1, "max_new_tokens": 512}
    fields = {
        "temperature": 1.5, "top_p": 0.5, "top_k": -1, "repetition_penalty": 1.0, "max_tokens": 3, "min_tokens": 2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "ignore_eos": True, "min_p": 0.05,
        "logit_bias": {"5": -100, "7": 2.5},
    }  # fmt: skip
    (params,) = merged(fields, generate_kwargs=kwargs)
    assert params == SamplingParams(
        temperature=1.5, top_p=0.5, top_k=None, repetition_penalty=1.0, max_tokens=3, min_tokens=2,
        presence_penalty=0.5, frequency_penalty=-0.5, ignore_eos=True, min_p=0.05, logit_bias={5: -100, 7: 2.5},
    )  # fmt: skip


def test_no_sampling_in_the_registry_is_greedy_until_a_request_wants_otherwise() -> None:
    assert merged(generate_kwargs={"do_sample": False})[0].temperature == 0
    assert merged({"temperature": 0.7}, generate_kwargs={"do_sample": False})[0].temperature == 0.7


@pytest.mark.parametrize("num_logprobs", [None, 0, 20])
def test_logprobs_are_wanted_as_the_endpoint_understood_it(num_logprobs: int | None) -> None:
    request = CompletionRequest.parse(b'{"model": "m", "prompt": "p", "n": 2}', max_choices=8)
    made = sampling_params(request, entry(), max_tokens=1, default_max_tokens=None, num_logprobs=num_logprobs)
    assert [params.num_logprobs for params in made] == [num_logprobs] * 2


def test_a_top_p_of_zero_is_the_likeliest_token() -> None:
    assert (merged({"top_p": 0})[0].top_p, merged({"top_p": 0})[0].top_k) == (1.0, 1)


def test_stops_add_up_and_keep_their_kind() -> None:
    stops = ["### End", "42", 42, [1, 2]]
    (params,) = merged({"stop": ["x", "42"], "stop_token_ids": [7, 42]}, stopping_sequences=stops)
    assert params.stop == ("### End", "42", "x")
    assert params.stop_token_ids == (42, 7)
    assert params.stop_token_sequences == ((1, 2),)


def test_a_contradiction_of_the_client_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        merged({"min_tokens": 5, "max_tokens": 4})
    assert (caught.value.param, caught.value.code) == ("min_tokens", "integer_above_max_value")
    with pytest.raises(InvalidRequestError, match="more than the 16 tokens"):
        merged({"min_tokens": 10**9})


def test_a_default_bends_to_the_clients_limit() -> None:
    assert merged({"max_tokens": 4}, generate_kwargs={"min_new_tokens": 16})[0].min_tokens == 4


def test_each_choice_has_a_seed_of_its_own() -> None:
    assert [params.seed for params in merged({"n": 3, "seed": 7})] == [7, 8, 9]
    assert [params.seed for params in merged({"n": 2, "seed": 2**63 - 1})] == [2**63 - 1, 0]
    assert [params.seed for params in merged({"n": 2})] == [None, None]


def test_a_negative_seed_is_one_a_worker_takes() -> None:
    assert merged({"seed": -1})[0].seed == 2**63 - 1


def test_as_many_sequences_are_made_as_the_best_are_taken_from() -> None:
    assert [params.seed for params in merged({"n": 2, "best_of": 3, "seed": 7})] == [7, 8, 9]
