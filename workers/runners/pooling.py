"""From the hidden states of a text's tokens to its vector. Pure; the same for every library behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows

from model_registry.schema import Embedding

POOLING_FILE: Final = "1_Pooling/config.json"
"""Where Sentence Transformers writes how a model is to be used."""


class Pooling(StrEnum):
    LAST = "last"
    MEAN = "mean"
    CLS = "cls"


_MODES: Final[Mapping[str, Pooling]] = {
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
}


@dataclass(frozen=True, slots=True)
class VectorShape:
    """What a model's vectors are like."""

    pooling: Pooling
    normalizes: bool
    can_be_cut: bool

    @classmethod
    def of(cls, embedding: Embedding, own: Pooling) -> VectorShape:
        """As the registry says; `own` is the model's way of pooling."""
        return cls(Pooling(embedding.pooling or own), embedding.normalize, embedding.dimensions)

    def vector(self, hidden: torch.Tensor, num_dimensions: int) -> bytes:
        """Of a text whose tokens have the hidden states `[num_tokens, size]`; a vector that is cut has length 1 too."""
        hidden = hidden.float()
        match self.pooling:
            case Pooling.LAST:
                vector = hidden[-1]
            case Pooling.CLS:
                vector = hidden[0]
            case Pooling.MEAN:
                vector = hidden.mean(0)
        vector = vector[:num_dimensions]
        if self.normalizes:
            vector = F.normalize(vector, dim=0)
        data: bytes = vector.cpu().numpy().astype("<f4").tobytes()
        return data


def own_pooling(folder: Path, otherwise: Pooling) -> Pooling:
    """What a Hugging Face folder says about itself, if it says anything that is known here."""
    path = folder / POOLING_FILE
    if not path.exists():
        return otherwise
    said = json.loads(path.read_text(encoding="utf-8"))
    chosen = [pooling for mode, pooling in _MODES.items() if said.get(mode)]
    return chosen[0] if len(chosen) == 1 else otherwise
