"""Vectors from Transformers models: the hidden states under the head of a decoder, or those of an encoder.

A decoder runs prompts side by side in one packed row, through the same attention seam as generations, but without their
KV cache. An encoder runs those of similar length together, padded, with its own attention. Making an embedder runs it
once: what comes out is how large its vectors are. Called between two engine steps; knows no requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, Final

import torch

from workers.engine.embeddings import Passage
from workers.errors import DeviceLostError
from workers.runners import attention
from workers.runners.compiled import present_step
from workers.runners.pooling import VectorShape

_PROBE: Final = (0,)
"""Token ids that every model has."""


class DecoderEmbedder:
    """Over a causal language model whose attention is ours."""

    def __init__(self, model: Any, device: torch.device, shape: VectorShape) -> None:
        """`device` is that of the first layer. Raises whatever a model raises that cannot be run so."""
        self._decoder = model.base_model
        self._device = device
        self._shape = shape
        self.can_be_cut = shape.can_be_cut
        self.num_dimensions = self._states([_PROBE], [slice(0, 1)]).shape[-1]

    def num_computed(self, lengths: Sequence[int]) -> int:
        return sum(lengths)

    @torch.inference_mode()
    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        lengths = [len(passage.token_ids) for passage in passages]
        rows = [slice(begin, end) for begin, end in pairwise(accumulate(lengths, initial=0))]
        hidden = self._states([passage.token_ids for passage in passages], rows)
        return [
            self._shape.vector(hidden[of], passage.num_dimensions) for of, passage in zip(rows, passages, strict=True)
        ]

    @torch.inference_mode()
    def _states(self, texts: Sequence[Sequence[int]], rows: Sequence[slice]) -> torch.Tensor:
        """Of all tokens, `[num_tokens, size]`; those of a text are its `rows`."""
        lengths = [len(text) for text in texts]
        token_ids = [token_id for text in texts for token_id in text]
        positions = [position for length in lengths for position in range(length)]
        step = attention.PackedStep(rows, max(lengths))
        # A compiled model looks for the step beside the graph, an eager one in its arguments.
        with _losses_told(), present_step(step, len(token_ids)):
            hidden: torch.Tensor = self._decoder(
                input_ids=torch.tensor([token_ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                use_cache=False,
                step=step,
            ).last_hidden_state[0]
        return hidden


class EncoderEmbedder:
    """Over a model that has no head to generate with."""

    def __init__(self, model: Any, shape: VectorShape) -> None:
        """Raises whatever a model raises that makes no hidden states of token ids alone."""
        self._model = model
        device: torch.device = model.get_input_embeddings().weight.device
        # Of weights that are offloaded: what is given on the CPU is brought to where they are computed.
        self._device = torch.device("cpu") if device.type == "meta" else device
        self._shape = shape
        self.can_be_cut = shape.can_be_cut
        self.num_dimensions = self._states([_PROBE]).shape[-1]

    def num_computed(self, lengths: Sequence[int]) -> int:
        groups = _alike(lengths)
        return sum(len(group) * max(lengths[number] for number in group) for group in groups)

    @torch.inference_mode()
    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        lengths = [len(passage.token_ids) for passage in passages]
        vectors: dict[int, bytes] = {}
        for group in _alike(lengths):
            hidden = self._states([passages[number].token_ids for number in group])
            for number, states in zip(group, hidden, strict=True):
                vectors[number] = self._shape.vector(states[: lengths[number]], passages[number].num_dimensions)
        return [vectors[number] for number in range(len(passages))]

    @torch.inference_mode()
    def _states(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of all tokens, `[num_texts, longest, size]`."""
        token_ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        mask = torch.zeros_like(token_ids)
        for row, text in enumerate(texts):
            token_ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        with _losses_told():
            hidden: torch.Tensor = self._model(
                input_ids=token_ids.to(self._device), attention_mask=mask.to(self._device)
            ).last_hidden_state
        return hidden


def _alike(lengths: Sequence[int]) -> Collection[Sequence[int]]:
    """Numbers of the texts that are padded together: none to twice its length."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length.bit_length()].append(number)
    return groups.values()


@contextmanager
def _losses_told() -> Iterator[None]:
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error).partition("\n")[0]) from error
