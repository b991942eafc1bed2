"""From a client's parameters and the registry's defaults to contract SamplingParams, one per sequence of a prompt.

Pure: knows the request models, the registry entry and the contract. A request overrides `generate_kwargs`; stops add
up. Without any limit on tokens, /v1/completions generates 16, as OpenAI and vLLM do, and a chat goes on to the end of
the context; the registry's `max_new_tokens` takes the place of both.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from gateway.errors import InvalidRequestError
from gateway.protocol.fields import SamplingFields
from model_registry.contract import Constraint, SamplingParams
from model_registry.schema import GenerateKwargs, RegistryEntry, StopSequence

DEFAULT_COMPLETION_TOKENS = 16
_SEEDS = 2**63

T = TypeVar("T")


def sampling_params(
    request: SamplingFields,
    entry: RegistryEntry,
    *,
    max_tokens: int | None,
    default_max_tokens: int | None,
    num_logprobs: int | None = None,
    echo: bool = False,
    num_prompt_logprobs: int | None = None,
    constraint: Constraint | None = None,
) -> tuple[SamplingParams, ...]:
    """One per sequence of each prompt.

    What is not in `GenerationFields` is given as the request says it, in whatever words its endpoint has. Raises
    `InvalidRequestError` when limits contradict.
    """
    generation = entry.model.generation
    defaults = generation.generate_kwargs
    limit = _first(max_tokens, defaults.max_new_tokens, default_max_tokens)
    strings, token_ids, sequences = _sorted_stops(generation.stopping_sequences)
    top_p, top_k = _nucleus(request, defaults)
    base = SamplingParams(
        max_tokens=limit,
        max_tokens_is_default=max_tokens is None,
        min_tokens=_min_tokens(request.min_tokens, defaults.min_new_tokens, limit),
        temperature=_temperature(request.temperature, defaults),
        top_p=top_p,
        top_k=top_k,
        min_p=_given(request.min_p, 0.0),
        logit_bias=request.token_biases,
        repetition_penalty=_given(request.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_given(request.presence_penalty, 0.0),
        frequency_penalty=_given(request.frequency_penalty, 0.0),
        num_logprobs=num_logprobs,
        echo=echo,
        num_prompt_logprobs=num_prompt_logprobs,
        constraint=constraint,
        ignore_eos=bool(request.ignore_eos),
        stop=tuple(dict.fromkeys(strings + request.stops)),
        stop_token_ids=tuple(dict.fromkeys((*token_ids, *(request.stop_token_ids or ())))),
        stop_token_sequences=sequences,
    )
    return tuple(_with_seed(base, request.seed, index) for index in range(request.num_sampled))


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)


def _temperature(requested: float | None, defaults: GenerateKwargs) -> float:
    return _given(requested, defaults.temperature if defaults.do_sample else 0.0)


def _nucleus(request: SamplingFields, defaults: GenerateKwargs) -> tuple[float, int | None]:
    """top_p and top_k. A top_p of 0 holds the likeliest token only, which is what a top_k of 1 says."""
    top_p = _given(request.top_p, defaults.top_p)
    if top_p == 0:
        return 1.0, 1
    top_k = _given(request.top_k, defaults.top_k)
    return top_p, top_k if top_k > 0 else None


def _min_tokens(requested: int | None, default: int, limit: int | None) -> int:
    """A default bends to the limit that a client sets; a client's own contradiction is refused."""
    if requested is None:
        return default if limit is None else min(default, limit)
    if limit is not None and requested > limit:
        raise InvalidRequestError(
            f"Invalid 'min_tokens': {requested} is more than the {limit} tokens that may be generated. "
            "Lower it, or raise the limit.",
            param="min_tokens",
            code="integer_above_max_value",
        )
    return requested


def _sorted_stops(
    stops: list[StopSequence],
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The registry's stopping sequences by kind: strings, single token ids, sequences of token ids."""
    strings = tuple(stop for stop in stops if isinstance(stop, str))
    token_ids = tuple(stop for stop in stops if isinstance(stop, int))
    sequences = tuple(tuple(stop) for stop in stops if isinstance(stop, list))
    return strings, token_ids, sequences


def _with_seed(base: SamplingParams, seed: int | None, index: int) -> SamplingParams:
    """Sequences of one prompt differ, and each can be had again alone by its own seed."""
    if seed is None:
        return base
    return msgspec.structs.replace(base, seed=(seed + index) % _SEEDS)
