"""The seam between a registry file and an engine: what an initializer must deliver.

An initializer gets the weights, loads them and returns a `LoadedModel`; the worker builds the engine around it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Protocol

from model_registry.schema import Generation, RegistryEntry
from model_registry.tool_formats import AnswerFormat
from workers.engine.embeddings import Embedder
from workers.engine.engine import Engine, EngineLimits, EngineSizes, NewKVCache
from workers.engine.paged_kv_cache import PagedKVCache
from workers.engine.raw_logprobs import RawLogprobs
from workers.engine.runner import LogitsRows, ModelRunner, StepPlan
from workers.engine.sampler import SampledToken, Sampler
from workers.engine.sequence import Sequence
from workers.engine.tokenizer import Tokenizer
from workers.errors import LoadError
from workers.sources.progress import Progress

__all__ = ["Initializer", "LoadedModel", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """Everything the engine needs of a model."""

    runner: ModelRunner
    sampler: Sampler
    tokenizer: Tokenizer
    max_model_len: int
    """Context length in tokens: the smaller of what the model can and the registry allows."""
    new_kv_cache: NewKVCache
    """For one engine at a time."""
    max_logits_rows: int | None = None
    """Of one step; None: one for each of its tokens."""
    embedder: Embedder | None = None
    """Makes embeddings with the same weights; None where that cannot be done."""
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    """As the model's chat template shows it."""
    generates: bool = True
    """False for a model that only makes embeddings."""
    note: str = ""
    """What an operator should know though the model serves; one line."""
    with_sizes: Callable[[Generation], LoadedModel] | None = None
    """The same weights for the sizes that another `generation` section says; None where that takes a load.

    Called between two steps. Memory stays as it is until the `new_kv_cache` of what it returns is called, which first
    gives back what the runner has. Raises `LoadError` when there is no room for such sizes.
    """


class Initializer(Protocol):
    """Turns a registry entry into a loaded model. Raises `LoadError`."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel: ...


class NoGeneration:
    """Runner and sampler of a model that generates nothing, and so never asks them."""

    def run(self, plan: StepPlan) -> LogitsRows:
        raise NotImplementedError

    def sample(self, rows: LogitsRows, sequences: Rows[Sequence], at: Rows[int]) -> list[SampledToken | Exception]:
        raise NotImplementedError

    def logprobs(self, rows: LogitsRows, token_ids: Rows[int], num_logprobs: int) -> list[RawLogprobs]:
        raise NotImplementedError


def embedding_only(
    embedder: Embedder, tokenizer: Tokenizer, generation: Generation, own_max_model_len: int
) -> LoadedModel:
    """A model that makes embeddings and cannot generate. It has no KV cache, only the books of one that stays empty."""
    max_model_len = min(own_max_model_len, generation.max_model_len or own_max_model_len)
    return LoadedModel(
        runner=NoGeneration(),
        sampler=NoGeneration(),
        tokenizer=tokenizer,
        max_model_len=max_model_len,
        new_kv_cache=lambda: PagedKVCache(1, max_model_len),
        embedder=embedder,
        generates=False,
        with_sizes=lambda other: embedding_only(embedder, tokenizer, other, own_max_model_len),
    )


def build_engine(entry: RegistryEntry, loaded: LoadedModel) -> Engine:
    """The engine around a loaded model, sized by the registry."""
    # Only here: the pool's manager imports this module on machines that run no model.
    from workers.runners.grammar import GrammarCompiler

    return Engine(
        loaded.runner,
        loaded.sampler,
        loaded.tokenizer,
        GrammarCompiler(loaded.tokenizer),
        engine_sizes(entry, loaded),
        loaded.embedder,
        generates=loaded.generates,
    )


def resized(loaded: LoadedModel, generation: Generation) -> LoadedModel:
    """The same weights with other sizes. Raises `LoadError` where that takes a load, or there is no room."""
    if loaded.with_sizes is None:
        raise LoadError("other sizes take a load of the model; deploy it anew")
    return loaded.with_sizes(generation)


def engine_sizes(entry: RegistryEntry, loaded: LoadedModel) -> EngineSizes:
    generation = entry.model.generation
    limits = EngineLimits(
        max_model_len=loaded.max_model_len,
        max_batch_size=generation.max_batch_size,
        max_batch_tokens=generation.max_batch_tokens,
        max_input_tokens=generation.max_input_tokens,
        max_logits_rows=loaded.max_logits_rows,
    )
    return EngineSizes(loaded.new_kv_cache, limits)
