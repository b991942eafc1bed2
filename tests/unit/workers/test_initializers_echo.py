"""Echo keeps the sizes that the registry gives it, or says that it cannot."""

from __future__ import annotations

import pytest

from model_registry.contract import ChatMessage, ChatPrompt
from model_registry.schema import RegistryEntry
from workers.engine.echo import END_OF_PROMPT, ByteTokenizer
from workers.engine.runner import StepPlan
from workers.errors import LoadError
from workers.initializers.base import LoadedModel
from workers.initializers.echo import EchoInitializer


def load(**generation: int) -> LoadedModel:
    model = {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}, "generation": generation}
    return EchoInitializer().load(RegistryEntry.model_validate({"model_config": model}), lambda _: None)


def test_the_context_is_never_longer_than_the_kv_cache() -> None:
    loaded = load(kv_cache_tokens=64)
    assert loaded.new_kv_cache().capacity == loaded.max_model_len == 64


def test_the_context_is_the_one_the_registry_asks_for() -> None:
    assert load(max_model_len=100).max_model_len == 100


def test_loading_and_steps_take_as_long_as_the_registry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    initializer = {"type": "Echo", "load_time_s": 2.5, "step_time_s": 0.25}
    model = {"model_id": "a/b", "initialization": {"initializer": initializer}}
    loaded = EchoInitializer().load(RegistryEntry.model_validate({"model_config": model}), lambda _: None)
    assert waits == [2.5]
    loaded.runner.run(StepPlan([]))
    assert waits == [2.5, 0.25]


def test_a_kv_cache_too_small_for_the_context_asked_for_is_refused() -> None:
    with pytest.raises(LoadError, match=r"raise generation\.kv_cache_tokens"):
        load(kv_cache_tokens=64, max_model_len=128)


@pytest.mark.parametrize(
    ("fields", "is_asked"),
    [
        ({}, True),
        ({"opens_answer": False}, False),
        ({"continues_final_message": True}, True),
        ({"continues_final_message": True, "opens_answer": False}, True),
    ],
)
def test_a_conversation_ends_where_something_is_to_be_said(fields: dict[str, bool], is_asked: bool) -> None:
    token_ids = ByteTokenizer().encode_prompt(ChatPrompt((ChatMessage("assistant", "hi"),), **fields))  # type: ignore[arg-type]
    assert token_ids == [104, 105, *([END_OF_PROMPT] if is_asked else [])]
