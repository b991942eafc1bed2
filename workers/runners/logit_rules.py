"""What a sequence's constraint, bans, biases and penalties make of its logits, before anything is drawn from them.

Each rule is one change of all rows that have it. The numbers it needs come from the sequences, none from the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows
from typing import Final

import numpy as np
import torch

from model_registry.contract import RequestFaultError
from workers.engine.sequence import Sequence

_FORBIDDEN: Final = -torch.inf


def apply_rules(rows: torch.Tensor, sequences: Rows[Sequence]) -> dict[int, RequestFaultError]:
    """Change rows `[num_rows, vocab_size]` in place. Those whose constraint cannot be followed, with the reason."""
    faults = _constrain(rows, sequences)
    _ban_ends(rows, sequences)
    _add(rows, [sequence.request.sampling.logit_bias for sequence in sequences])
    _penalize_repetition(rows, sequences)
    _add(rows, [_penalties(sequence) for sequence in sequences])
    return faults


class _Entries:
    """Some elements of the rows, by row and token, each at most once."""

    def __init__(self, rows: torch.Tensor, entries: Iterable[tuple[int, Iterable[int]]]) -> None:
        """`entries`: token ids of a row."""
        row_indices: list[int] = []
        columns: list[int] = []
        for row, token_ids in entries:
            columns += token_ids
            row_indices += [row] * (len(columns) - len(row_indices))
        self._rows = rows
        self._index = torch.tensor([row_indices, columns], device=rows.device, dtype=torch.long).unbind()

    @property
    def values(self) -> torch.Tensor:
        return self._rows[self._index]

    def set(self, values: torch.Tensor) -> None:
        self._rows[self._index] = values

    def add(self, values: list[float]) -> None:
        self.set(self.values + torch.tensor(values, device=self._rows.device, dtype=self._rows.dtype))


def _constrain(rows: torch.Tensor, sequences: Rows[Sequence]) -> dict[int, RequestFaultError]:
    """Leave what the constraints allow, and no end before its time as long as anything else may come."""
    faults: dict[int, RequestFaultError] = {}
    allowed: dict[int, np.ndarray] = {}
    for index, sequence in enumerate(sequences):
        if sequence.constraint is not None:
            try:
                mask = sequence.constraint.mask()
            except RequestFaultError as error:
                faults[index] = error
            else:
                allowed[index] = _without(_unpacked(mask, rows.shape[1]), sequence.banned_token_ids)
    if allowed:
        forbidden = torch.from_numpy(~np.stack([*allowed.values()])).to(rows.device)
        for index, row in zip(allowed, forbidden, strict=True):
            rows[index].masked_fill_(row, _FORBIDDEN)
    return faults


def _unpacked(mask: bytes, vocab_size: int) -> np.ndarray:
    """A bool per token, of a mask that has a bit for each."""
    return np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=vocab_size, bitorder="little").view(bool)


def _without(allowed: np.ndarray, banned: frozenset[int]) -> np.ndarray:
    if not banned:
        return allowed
    others = allowed.copy()
    others[[*banned]] = False
    return others if others.any() else allowed


def _ban_ends(rows: torch.Tensor, sequences: Rows[Sequence]) -> None:
    """No end before `min_tokens`, where no constraint says what may come instead."""
    banned = [
        (index, sequence.banned_token_ids)
        for index, sequence in enumerate(sequences)
        if sequence.constraint is None and not sequence.may_end
    ]
    if banned:
        _Entries(rows, banned).set(torch.tensor(_FORBIDDEN, device=rows.device))


def _penalize_repetition(rows: torch.Tensor, sequences: Rows[Sequence]) -> None:
    """Over prompt and answer (CTRL, Keskar et al. 2019)."""
    penalties = {
        index: sequence.request.sampling.repetition_penalty
        for index, sequence in enumerate(sequences)
        if sequence.request.sampling.repetition_penalty != 1
    }
    if not penalties:
        return
    seen = {index: set(sequences[index].token_ids) for index in penalties}
    entries = _Entries(rows, seen.items())
    repeated = [penalty for index, penalty in penalties.items() for _ in seen[index]]
    factors = torch.tensor(repeated, device=rows.device, dtype=rows.dtype)
    logits = entries.values
    entries.set(torch.where(logits > 0, logits / factors, logits * factors))


def _add(rows: torch.Tensor, terms: Rows[Mapping[int, float]]) -> None:
    """To some tokens of each row."""
    if any(terms):
        values = [value for one in terms for value in one.values()]
        _Entries(rows, enumerate(terms)).add(values)


def _penalties(sequence: Sequence) -> Mapping[int, float]:
    """OpenAI's for frequency and presence, over the answer."""
    frequency, presence = sequence.request.sampling.frequency_penalty, sequence.request.sampling.presence_penalty
    if not frequency and not presence:
        return {}
    return {token_id: -frequency * count - presence for token_id, count in sequence.generated_counts.items()}
