"""Which initializer a file chooses, and how the registry sizes the engine around what it loads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model_registry.schema import RegistryEntry
from workers.engine.engine import EngineLimits
from workers.errors import LoadError
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import resized
from workers.initializers.echo import EchoInitializer


def entry(**generation: Any) -> RegistryEntry:
    model = {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}, "generation": generation}
    return RegistryEntry.model_validate({"model_config": model})


def test_the_type_chooses_the_initializer() -> None:
    assert isinstance(initializer_for(entry()), EchoInitializer)


def test_the_engine_is_sized_by_the_registry() -> None:
    sized = entry(max_batch_size=3, max_batch_tokens=48, max_model_len=100, max_input_tokens=80, kv_cache_tokens=160)
    engine = build_engine(sized, initializer_for(sized).load(sized, lambda _: None))
    assert engine.limits == EngineLimits(
        max_batch_size=3,
        max_batch_tokens=48,
        max_model_len=100,
        max_input_tokens=80,
    )


def test_what_takes_a_load_for_other_sizes_says_so() -> None:
    loaded = initializer_for(entry()).load(entry(), lambda _: None)
    generation = entry(max_model_len=64).model.generation
    assert resized(loaded, generation).max_model_len == 64
    with pytest.raises(LoadError, match="take a load of the model"):
        resized(replace(loaded, with_sizes=None), generation)
