"""Chooses tokens from logits with torch, all sequences of a step together, each by its own parameters.

Order as in vLLM: constraints, bans, biases, penalties, temperature, min-p, top-k, top-p, draw. A row's result depends
on that row and its sequence alone, never on its neighbours. Nothing is fetched from the device row by row, since each
fetch waits for it. Logprobs are those of the row as it came, as vLLM's `raw_logprobs` are, and cost nothing where
nobody wants them.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch

from workers.engine.sampler import RawLogprobs, SampledToken
from workers.engine.sequence import Sequence
from workers.runners.drawing import draw
from workers.runners.logit_rules import apply_rules
from workers.runners.ranking import raw_logprobs

MIN_TEMPERATURE = 1e-5
"""Below this, sampling is greedy: nothing else has any probability left in float32."""


class TorchSampler:
    """`Sampler` for logits `[num_rows, vocab_size]` in float32, which it changes in place."""

    @torch.inference_mode()
    def sample(self, rows: torch.Tensor, sequences: Rows[Sequence], at: Rows[int]) -> list[SampledToken | Exception]:
        rows = _picked(rows, at)
        wanted = [index for index, one in enumerate(sequences) if one.request.sampling.num_logprobs is not None]
        logprobs = torch.log_softmax(_picked(rows, wanted), dim=-1) if wanted else None
        faults: dict[int, Exception] = {**apply_rules(rows, sequences)}
        for index in _not_finite(rows):
            faults.setdefault(index, ArithmeticError("the model computed logits that are not finite"))
        token_ids = _choose(rows, sequences)
        told: dict[int, RawLogprobs] = {}
        if logprobs is not None:
            num_told = [sequences[index].request.sampling.num_logprobs or 0 for index in wanted]
            known = raw_logprobs(logprobs, [token_ids[index] for index in wanted], num_told)
            told = dict(zip(wanted, known, strict=True))
        return [
            faults[index] if index in faults else SampledToken(token_id, told.get(index))
            for index, token_id in enumerate(token_ids)
        ]

    @torch.inference_mode()
    def logprobs(self, rows: torch.Tensor, token_ids: Rows[int], num_logprobs: int) -> list[RawLogprobs]:
        if _not_finite(rows):
            raise ArithmeticError("the model computed logits that are not finite")
        return raw_logprobs(torch.log_softmax(rows, dim=-1), token_ids, [num_logprobs] * len(rows))


def _picked(rows: torch.Tensor, indices: Rows[int]) -> torch.Tensor:
    """These rows in order: a copy, or the same tensor where they are all that there are."""
    return rows if len(indices) == len(rows) else rows[list(indices)]


def _not_finite(rows: torch.Tensor) -> list[int]:
    """Rows without a highest logit: one that is not a number, and one that allows nothing."""
    is_finite = torch.isfinite(rows.amax(dim=-1)).tolist()
    return [index for index, finite in enumerate(is_finite) if not finite]


def _choose(rows: torch.Tensor, sequences: Rows[Sequence]) -> list[int]:
    """One token of each row; any one of a row that is not finite."""
    drawn = [index for index, one in enumerate(sequences) if one.request.sampling.temperature >= MIN_TEMPERATURE]
    token_ids = _likeliest_tokens(rows) if len(drawn) < len(rows) else [0] * len(rows)
    if drawn:
        for index, token_id in zip(
            drawn, draw(_picked(rows, drawn), [sequences[index] for index in drawn]), strict=True
        ):
            token_ids[index] = token_id
    return token_ids


def _likeliest_tokens(rows: torch.Tensor) -> list[int]:
    """The id of each row's highest logit; on the CPU by numpy, which finds it ten times as fast as torch."""
    likeliest = rows.numpy().argmax(axis=-1) if rows.device.type == "cpu" else rows.argmax(dim=-1)
    ids: list[int] = likeliest.tolist()
    return ids
