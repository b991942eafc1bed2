"""Vectors from Transformers models: the hidden states under the head of a decoder, or those of an encoder.

A decoder runs prompts side by side in one packed row, through the same attention seam as generations, but without their
KV cache. An encoder runs them padded, with its own attention. Called between two engine steps; knows no requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch

from workers.engine.embeddings import Passage
from workers.errors import DeviceLostError
from workers.runners import attention
from workers.runners.compiled import present_step
from workers.runners.pooling import VectorShape


class DecoderEmbedder:
    """Over a causal language model whose attention is ours."""

    def __init__(self, model: Any, device: torch.device, shape: VectorShape) -> None:
        """`device` is that of the first layer."""
        self._decoder = model.base_model
        self._device = device
        self._shape = shape
        self.num_dimensions: int = model.config.get_text_config().hidden_size
        self.can_be_cut = shape.can_be_cut

    @torch.inference_mode()
    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        lengths = [len(passage.token_ids) for passage in passages]
        rows = [slice(begin, end) for begin, end in pairwise(accumulate(lengths, initial=0))]
        token_ids = [token_id for passage in passages for token_id in passage.token_ids]
        positions = [position for length in lengths for position in range(length)]
        step = attention.PackedStep(rows, max(lengths))
        # A compiled model looks for the step beside the graph, an eager one in its arguments.
        with _losses_told(), present_step(step, len(token_ids)):
            hidden = self._decoder(
                input_ids=torch.tensor([token_ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                use_cache=False,
                step=step,
            ).last_hidden_state[0]
        return [
            self._shape.vector(hidden[of], passage.num_dimensions) for of, passage in zip(rows, passages, strict=True)
        ]


class EncoderEmbedder:
    """Over a model that has no head to generate with."""

    def __init__(self, model: Any, shape: VectorShape) -> None:
        self._model = model
        device: torch.device = model.get_input_embeddings().weight.device
        # Of weights that are offloaded: what is given on the CPU is brought to where they are computed.
        self._device = torch.device("cpu") if device.type == "meta" else device
        self._shape = shape
        self.num_dimensions: int = model.config.get_text_config().hidden_size
        self.can_be_cut = shape.can_be_cut

    @torch.inference_mode()
    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        longest = max(len(passage.token_ids) for passage in passages)
        token_ids = torch.zeros(len(passages), longest, dtype=torch.long)
        mask = torch.zeros_like(token_ids)
        for row, passage in enumerate(passages):
            token_ids[row, : len(passage.token_ids)] = torch.tensor(passage.token_ids)
            mask[row, : len(passage.token_ids)] = 1
        with _losses_told():
            hidden = self._model(
                input_ids=token_ids.to(self._device), attention_mask=mask.to(self._device)
            ).last_hidden_state
        return [
            self._shape.vector(states[: len(passage.token_ids)], passage.num_dimensions)
            for states, passage in zip(hidden, passages, strict=True)
        ]


@contextmanager
def _losses_told() -> Iterator[None]:
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error).partition("\n")[0]) from error
