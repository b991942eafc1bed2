"""How likely tokens were, for those who want to know: the chosen one of each row, and the likeliest in order."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from workers.engine.raw_logprobs import RawLogprobs


def raw_logprobs(logprobs: torch.Tensor, token_ids: Rows[int], num_ranked: Rows[int]) -> list[RawLogprobs]:
    """Of rows `[num_rows, vocab_size]` of logprobs, the chosen token of each and so many of its likeliest."""
    chosen_ids = torch.tensor(token_ids, device=logprobs.device)[:, None]
    chosen = logprobs.gather(1, chosen_ids)[:, 0].tolist()
    return [RawLogprobs(*pair) for pair in zip(chosen, _ranked(logprobs, num_ranked), strict=True)]


def _ranked(logprobs: torch.Tensor, num_ranked: Rows[int]) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each row in order. `topk` alone leaves open which of several equals it takes, and how it
    sorts them: low precision has many, and the same request must always see the same."""
    if not any(num_ranked):
        return [[] for _ in num_ranked]
    top, ids = logprobs.topk(min(max(num_ranked) + 1, logprobs.shape[1]))
    candidates = zip(ids.tolist(), top.tolist(), strict=True)
    return [
        _first(num, row_ids, values, logprobs[index])
        for index, (num, (row_ids, values)) in enumerate(zip(num_ranked, candidates, strict=True))
    ]


def _first(num_ranked: int, ids: list[int], values: list[float], row: torch.Tensor) -> list[tuple[int, float]]:
    """The first tokens of a row of which the candidates are some of the likeliest."""
    if 0 < num_ranked < len(ids) < len(row) and values[num_ranked - 1] == values[-1]:
        # There may be more of these equals.
        ids = (row >= values[-1]).nonzero()[:, 0].tolist()
        values = row[ids].tolist()
    return sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:num_ranked]
