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


@dataclass(frozen=True, slots=True)
class _Draws:
    """What some rows are drawn from, and what their sequences ask for as columns `[num_rows, 1]`."""

    logits: torch.Tensor
    """`[num_rows, vocab_size]`, after temperature and min-p."""
    probabilities: torch.Tensor
    top_k: torch.Tensor
    """The size of the vocabulary where all may stay."""
    top_p: torch.Tensor
    number: torch.Tensor
    """Random, in [0, 1)."""

    def at(self, indices: torch.Tensor) -> _Draws:
        return _Draws(
            self.logits[indices],
            self.probabilities[indices],
            self.top_k[indices],
            self.top_p[indices],
            self.number[indices],
        )


def _draw_some(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """Ids `[num_rows]`."""
    rows = _draws_of(logits, sequences)
    sampling = [sequence.request.sampling for sequence in sequences]
    is_cut = [one.top_k is not None or one.top_p < 1 for one in sampling]
    if not any(is_cut):
        return _pick(rows)
    if all(is_cut):
        return _pick_of_likeliest(rows)
    chosen = torch.zeros(len(sampling), device=logits.device, dtype=torch.long)
    for pick, wanted in ((_pick, False), (_pick_of_likeliest, True)):
        at = torch.tensor([index for index, cut in enumerate(is_cut) if cut is wanted], device=logits.device)
        chosen[at] = pick(rows.at(at))
    return chosen


def _draws_of(logits: torch.Tensor, sequences: Rows[Sequence]) -> _Draws:
    vocab_size = logits.shape[1]
    table = [
        (
            sampling.temperature,
            math.log(sampling.min_p) if sampling.min_p else -math.inf,
            min(sampling.top_k or vocab_size, vocab_size),
            sampling.top_p,
            sequence.draw(),
        )
        for sequence in sequences
        for sampling in (sequence.request.sampling,)
    ]
    # All at once: each copy to a device waits until it has nothing else to do.
    columns = torch.tensor(table, dtype=torch.double, device=logits.device).unsqueeze(-1).unbind(dim=1)
    temperature, least_logit, top_k, top_p, number = columns
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.to(logits.dtype)
    if any(sequence.request.sampling.min_p for sequence in sequences):
        logits.masked_fill_(logits < least_logit.to(logits.dtype), -torch.inf)
    return _Draws(logits, torch.softmax(logits, dim=-1), top_k.long(), top_p, number)


def _pick(rows: _Draws) -> torch.Tensor:
    """Ids `[num_rows]`, chosen by the random numbers through the inverse of the cumulative distributions."""
    mass = rows.probabilities.double().cumsum(dim=-1)
    index = torch.searchsorted(mass, rows.number * mass[:, -1:], right=True)
    return index[:, 0].clamp(max=mass.shape[1] - 1)


def _pick_of_likeliest(rows: _Draws) -> torch.Tensor:
    """Ids `[num_rows]` out of what top-k and top-p leave."""
    num_rows, vocab_size = rows.logits.shape
    chosen = torch.zeros(num_rows, device=rows.logits.device, dtype=torch.long)
    at = torch.arange(num_rows, device=chosen.device)
    for num_candidates in (*(num for num in NUM_CANDIDATES if num < vocab_size), vocab_size):
        chosen[at], is_settled = _pick_among(num_candidates, rows)
        unsettled = (~is_settled).nonzero()[:, 0]
        if num_candidates == vocab_size or not len(unsettled):
            break
        if len(unsettled) < len(at):
            at, rows = at[unsettled], rows.at(unsettled)
    return chosen


def _pick_among(num_candidates: int, rows: _Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids `[num_rows]` out of the likeliest, and whether looking at more could not change them."""
    values, ids = _likeliest(rows.logits, num_candidates)
    candidates = rows.probabilities.gather(1, ids).double()
    mass = candidates.cumsum(dim=-1)
    limit, is_known = _limit(mass, rows)
    # A token stays while those before it have not reached the limit, so the likeliest always does.
    is_kept = (mass - candidates < limit) & (torch.arange(num_candidates, device=ids.device) < rows.top_k)
    last = is_kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    index = torch.searchsorted(mass, rows.number * mass.gather(1, last), right=True).minimum(last)
    is_settled = is_known & (values.gather(1, last) > values[:, -1:])
    return ids.gather(1, index)[:, 0], is_settled[:, 0]


def _limit(mass: torch.Tensor, rows: _Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """The probability that top-p leaves, which is a share of what top-k left, and whether the candidates tell it."""
    num_candidates, vocab_size = mass.shape[1], rows.logits.shape[1]
    is_among = rows.top_k <= num_candidates
    of_top_k = mass.gather(1, rows.top_k.clamp(max=num_candidates) - 1)
    return rows.top_p * torch.where(is_among, of_top_k, 1.0), is_among | (rows.top_k == vocab_size)


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
