"""Chooses tokens from logits with torch, each row by its own sequence's parameters.

Order as in vLLM: constraints, bans, biases, penalties, temperature, min-p, top-k, top-p, draw. A row's result depends
on that row and its sequence alone, never on its neighbours. Random numbers come from the sequence, so they are the same
on every device. Logprobs are those of the row as it came, as vLLM's `raw_logprobs` are, and cost nothing where nobody
wants them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch

from model_registry.contract import RequestFaultError, SamplingParams
from workers.engine.sampler import RawLogprobs, SampledToken
from workers.engine.sequence import Sequence

MIN_TEMPERATURE = 1e-5
"""Below this, sampling is greedy: nothing else has any probability left in float32."""
NUM_CANDIDATES = 1024
"""Likeliest tokens looked at first for top-k and top-p; only a row that needs more is sorted whole."""


class TorchSampler:
    """`Sampler` for logits `[num_rows, vocab_size]` in float32, which it changes in place."""

    @torch.inference_mode()
    def sample(self, rows: torch.Tensor, sequences: Rows[Sequence]) -> list[SampledToken | Exception]:
        wanted: dict[int, torch.Tensor] = {}
        faults: dict[int, RequestFaultError] = {}
        for index, (row, sequence) in enumerate(zip(rows, sequences, strict=True)):
            if sequence.request.sampling.num_logprobs is not None:
                wanted[index] = torch.log_softmax(row, dim=-1)
            try:
                _ban(row, sequence)
            except RequestFaultError as error:
                faults[index] = error
            _bias(row, sequence)
            _penalize(row, sequence)
        token_ids = _likeliest_tokens(rows)
        finite = torch.isfinite(rows.amax(dim=-1)).tolist()
        sampled: list[SampledToken | Exception] = []
        for index, sequence in enumerate(sequences):
            if index in faults:
                sampled.append(faults[index])
                continue
            if not finite[index]:
                sampled.append(ArithmeticError("the model computed logits that are not finite"))
                continue
            greedy = sequence.request.sampling.temperature < MIN_TEMPERATURE
            token_id = token_ids[index] if greedy else _draw(rows[index], sequence)
            num_logprobs = sequence.request.sampling.num_logprobs
            logprobs = None if num_logprobs is None else _raw_logprobs(wanted[index], token_id, num_logprobs)
            sampled.append(SampledToken(token_id, logprobs))
        return sampled

    @torch.inference_mode()
    def logprobs(self, rows: torch.Tensor, token_ids: Rows[int], num_logprobs: int) -> list[RawLogprobs]:
        if not bool(torch.isfinite(rows.amax(dim=-1)).all()):
            raise ArithmeticError("the model computed logits that are not finite")
        return [
            _raw_logprobs(logprobs, token_id, num_logprobs)
            for logprobs, token_id in zip(torch.log_softmax(rows, dim=-1), token_ids, strict=True)
        ]


def _likeliest_tokens(rows: torch.Tensor) -> list[int]:
    """The id of each row's highest logit; on the CPU by numpy, which finds it ten times as fast as torch."""
    likeliest = rows.numpy().argmax(axis=-1) if rows.device.type == "cpu" else rows.argmax(dim=-1)
    ids: list[int] = likeliest.tolist()
    return ids


def _raw_logprobs(logprobs: torch.Tensor, token_id: int, num_logprobs: int) -> RawLogprobs:
    return RawLogprobs(float(logprobs[token_id]), _ranked(logprobs, num_logprobs) if num_logprobs else ())


def _ranked(logprobs: torch.Tensor, num_ranked: int) -> list[tuple[int, float]]:
    """The likeliest tokens in order. `topk` alone leaves open which of several equals it takes, and how it sorts them:
    low precision has many, and the same request must always see the same."""
    top, ids = logprobs.topk(min(num_ranked + 1, len(logprobs)))
    if len(ids) > num_ranked and top[-1] == top[-2]:
        ids = (logprobs >= top[-1]).nonzero()[:, 0]
    pairs: list[tuple[int, float]] = list(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:num_ranked]


def _ban(row: torch.Tensor, sequence: Sequence) -> None:
    """Leave what the sequence's constraint allows, and no end before `min_tokens` as long as anything else may come."""
    if sequence.constraint is None:
        if not sequence.may_end:
            row[[*sequence.banned_token_ids]] = -torch.inf
        return
    ends = [*sequence.banned_token_ids]
    allowed = _unpacked(sequence.constraint.mask(), row)
    if ends:
        others = allowed.clone()
        others[ends] = False
        allowed = others if others.any() else allowed
    row.masked_fill_(~allowed, -torch.inf)


def _unpacked(mask: bytes, row: torch.Tensor) -> torch.Tensor:
    """A bool per token of a row, of a mask that has a bit for each."""
    packed = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(row.device)
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=row.device) & 1
    return bits.view(-1)[: len(row)].bool()


def _bias(row: torch.Tensor, sequence: Sequence) -> None:
    biases = sequence.request.sampling.logit_bias
    if biases:
        token_ids = torch.tensor(list(biases), device=row.device)
        row[token_ids] += torch.tensor(list(biases.values()), device=row.device, dtype=row.dtype)


def _penalize(row: torch.Tensor, sequence: Sequence) -> None:
    """Repetition penalty over prompt and answer (CTRL, Keskar et al. 2019); OpenAI's two over the answer."""
    sampling = sequence.request.sampling
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sequence.token_ids, device=row.device).unique()
        logits = row[seen]
        row[seen] = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
    if (sampling.frequency_penalty or sampling.presence_penalty) and sequence.generated_counts:
        generated = torch.tensor(list(sequence.generated_counts), device=row.device)
        counts = torch.tensor(list(sequence.generated_counts.values()), device=row.device, dtype=row.dtype)
        row[generated] -= sampling.frequency_penalty * counts + sampling.presence_penalty


def _draw(row: torch.Tensor, sequence: Sequence) -> int:
    sampling = sequence.request.sampling
    logits = (row - row.max()) / sampling.temperature
    if sampling.min_p:
        logits = logits.masked_fill(logits < math.log(sampling.min_p), -torch.inf)
    if sampling.top_k is None and sampling.top_p == 1:
        return _pick(torch.softmax(logits, dim=-1), sequence.draw())
    likeliest, kept = _likeliest(logits, sampling)
    return int(likeliest[_pick(kept, sequence.draw())])


def _likeliest(logits: torch.Tensor, sampling: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and probabilities that top-k and top-p leave, likeliest first."""
    vocab_size = len(logits)
    top_k = min(sampling.top_k or vocab_size, vocab_size)
    total = torch.logsumexp(logits, dim=-1)
    for num_candidates in (min(NUM_CANDIDATES, vocab_size), vocab_size):
        top, ids = logits.topk(min(num_candidates, top_k))
        probabilities = torch.exp(top - total).double()
        mass = probabilities.cumsum(dim=-1)
        # Top-p is a share of what top-k left.
        limit = sampling.top_p * (float(mass[-1]) if len(ids) == top_k else 1.0)
        if len(ids) == top_k or float(mass[-1]) >= limit:
            break
    # A token stays while those before it have not reached the limit, so the likeliest always does.
    num_kept = max(1, int((mass - probabilities < limit).sum()))
    return ids[:num_kept], probabilities[:num_kept]


def _pick(probabilities: torch.Tensor, draw: float) -> int:
    """Index chosen by a number in [0, 1) through the inverse of the cumulative distribution."""
    cumulative = probabilities.double().cumsum(dim=-1)
    index = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
    return min(index, len(cumulative) - 1)
