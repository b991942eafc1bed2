"""The seam between a registry file and an engine: what an initializer must deliver.

An initializer gets the weights, loads them and returns a `LoadedModel`; the worker builds the engine around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from model_registry.schema import RegistryEntry
from workers.engine.engine import Engine, EngineLimits
from workers.engine.kv_cache import KVCache
from workers.engine.runner import ModelRunner
from workers.engine.sampler import Sampler
from workers.engine.tokenizer import Tokenizer
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
    new_kv_cache: Callable[[], KVCache]
    """Makes the books of the runner's KV memory, with nothing in them; for one engine at a time."""
    note: str = ""
    """What an operator should know though the model serves; one line."""


class Initializer(Protocol):
    """Turns a registry entry into a loaded model. Raises `LoadError`."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel: ...


def build_engine(entry: RegistryEntry, loaded: LoadedModel) -> Engine:
    """The engine around a loaded model, sized by the registry."""
    generation = entry.model.generation
    limits = EngineLimits(
        max_model_len=loaded.max_model_len,
        max_batch_size=generation.max_batch_size,
        max_batch_tokens=generation.max_batch_tokens,
        max_input_tokens=generation.max_input_tokens,
    )
    return Engine(loaded.runner, loaded.sampler, loaded.tokenizer, kv_cache=loaded.new_kv_cache(), limits=limits)
