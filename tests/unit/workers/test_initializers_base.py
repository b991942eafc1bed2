"""Which initializer a file chooses, and how the registry sizes the engine around what it loads."""

from __future__ import annotations

from typing import Any

from model_registry.schema import RegistryEntry
from workers.engine.engine import EngineLimits
from workers.initializers import build_engine, initializer_for
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
