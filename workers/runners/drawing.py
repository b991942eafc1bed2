"""Draws a token from each row of logits: temperature, min-p, top-k, top-p, and the sequence's own random number.

Random numbers come from the sequences, so they are the same on every device. What top-k and top-p leave is looked for
among the likeliest tokens first; where that leaves it open, among more. Equally likely tokens are in the order of
their ids, so how many were looked at, and what else was in the batch, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Final

import torch

from model_registry.contract import SamplingParams
from workers.engine.sequence import Sequence

NUM_CANDIDATES: Final = (64, 1024)
"""Likeliest tokens looked at for top-k and top-p, before the whole row is sorted."""
MAX_ROWS: Final = 32
"""Drawn from at a time: each needs some ten times the memory of its logits in half precision."""
MAX_ROWS_ON_CPU: Final = 4
"""So few stay in its cache."""


def draw(rows: torch.Tensor, sequences: Rows[Sequence]) -> list[int]:
    """One token id for each row of `[num_rows, vocab_size]`, with temperatures above zero; leaves the rows alone."""
    num_rows = MAX_ROWS_ON_CPU if rows.device.type == "cpu" else MAX_ROWS
    chosen = [
        _draw_some(rows[start : start + num_rows], sequences[start : start + num_rows])
        for start in range(0, len(rows), num_rows)
    ]
    ids: list[int] = torch.cat(chosen).tolist()
    return ids


def picked(rows: torch.Tensor, indices: Rows[int]) -> torch.Tensor:
    """These rows in order; the same tensor where they are all that there are."""
    return rows if len(indices) == len(rows) else rows[list(indices)]


def _draw_some(rows: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    sampling = [sequence.request.sampling for sequence in sequences]
    logits = (rows - rows.amax(dim=-1, keepdim=True)) / _column([one.temperature for one in sampling], rows)
    if any(one.min_p for one in sampling):
        limits = [math.log(one.min_p) if one.min_p else -math.inf for one in sampling]
        logits.masked_fill_(logits < _column(limits, rows), -torch.inf)
    draws = torch.tensor([sequence.draw() for sequence in sequences], device=rows.device, dtype=torch.double)
    probabilities = torch.softmax(logits, dim=-1)
    cut = [index for index, one in enumerate(sampling) if one.top_k is not None or one.top_p < 1]
    whole = [index for index, one in enumerate(sampling) if one.top_k is None and one.top_p == 1]
    if not cut:
        return _pick(probabilities, draws)
    chosen = torch.zeros(len(rows), device=rows.device, dtype=torch.long)
    if whole:
        chosen[whole] = _pick(probabilities[whole], draws[whole])
    chosen[cut] = _pick_of_likeliest(
        picked(logits, cut), picked(probabilities, cut), draws[cut], [sampling[index] for index in cut]
    )
    return chosen


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]


def _pick(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Indices `[num_rows]`, chosen by numbers in [0, 1) through the inverse of the cumulative distributions."""
    cumulative = probabilities.double().cumsum(dim=-1)
    picked = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
    return picked[:, 0].clamp(max=cumulative.shape[1] - 1)


def _pick_of_likeliest(
    logits: torch.Tensor, probabilities: torch.Tensor, draws: torch.Tensor, sampling: Rows[SamplingParams]
) -> torch.Tensor:
    """Ids `[num_rows]` out of what top-k and top-p leave."""
    chosen = torch.zeros(len(logits), device=logits.device, dtype=torch.long)
    vocab_size = logits.shape[1]
    limits = _Limits.of(sampling, vocab_size, logits.device)
    unsettled = list(range(len(logits)))
    for num_candidates in (*(num for num in NUM_CANDIDATES if num < vocab_size), vocab_size):
        token_ids, is_settled = _pick_among(
            num_candidates,
            picked(logits, unsettled),
            picked(probabilities, unsettled),
            draws[unsettled],
            limits.rows(unsettled),
        )
        chosen[unsettled] = token_ids
        if num_candidates < vocab_size:
            unsettled = [row for row, settled in zip(unsettled, is_settled.tolist(), strict=True) if not settled]
        if not unsettled:
            break
    return chosen


@dataclass(frozen=True, slots=True)
class _Limits:
    """Columns `[num_rows, 1]`."""

    top_k: torch.Tensor
    top_p: torch.Tensor

    @classmethod
    def of(cls, sampling: Rows[SamplingParams], vocab_size: int, device: torch.device) -> _Limits:
        top_k = [min(one.top_k or vocab_size, vocab_size) for one in sampling]
        top_p = torch.tensor([one.top_p for one in sampling], device=device, dtype=torch.double)
        return cls(torch.tensor(top_k, device=device)[:, None], top_p[:, None])

    def rows(self, indices: list[int]) -> _Limits:
        return _Limits(self.top_k[indices], self.top_p[indices])


def _pick_among(
    num_candidates: int, logits: torch.Tensor, probabilities: torch.Tensor, draws: torch.Tensor, limits: _Limits
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[num_rows]` out of the likeliest, and whether looking at more could not change them."""
    values, ids = _likeliest(logits, num_candidates)
    candidates = probabilities.gather(1, ids).double()
    mass = candidates.cumsum(dim=-1)
    # Top-p is a share of what top-k left.
    of_top_k = mass.gather(1, limits.top_k.clamp(max=num_candidates) - 1)
    limit = limits.top_p * torch.where(limits.top_k <= num_candidates, of_top_k, 1.0)
    # A token stays while those before it have not reached the limit, so the likeliest always does.
    is_kept = (mass - candidates < limit) & (torch.arange(num_candidates, device=ids.device) < limits.top_k)
    last = is_kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    index = torch.searchsorted(mass, draws[:, None] * mass.gather(1, last), right=True).minimum(last)
    is_settled = values.gather(1, last) > values[:, -1:]
    return ids.gather(1, index)[:, 0], is_settled[:, 0]


def _likeliest(logits: torch.Tensor, num_candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids of the likeliest tokens of each row, in order, equals by id; of equals at the end, any.

    `topk` alone leaves open in which order equals come.
    """
    if num_candidates == logits.shape[1]:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, ids
    top, ids = logits.topk(num_candidates)
    ids, by_id = ids.sort(dim=-1)
    values, order = top.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)
