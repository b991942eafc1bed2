"""torch_compile: the same text from compiled graphs, warmed up at load, and a reason where it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_registry.contract import GenerationRequest, SamplingParams, TextPrompt, TextSegment
from model_registry.schema import RegistryEntry
from workers.errors import LoadError
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel

PROMPTS = ("the quick brown fox", "where there is a will", "every worker", "a prompt waits for a worker and a prompt")
COUNTING = "aviary_tests_counting"
FAILING = "aviary_tests_failing"

pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("default::DeprecationWarning")]


class Counts:
    """What the counting backend was asked for, and how often its graphs ran."""

    def __init__(self) -> None:
        self.num_graphs = 0
        self.num_calls = 0

    def compile(self, graph: Any, _inputs: Any) -> Callable[..., Any]:
        self.num_graphs += 1

        def run(*inputs: Any) -> Any:
            self.num_calls += 1
            return graph.forward(*inputs)

        return run


counts = Counts()


def count(graph: Any, inputs: Any) -> Callable[..., Any]:
    return counts.compile(graph, inputs)


def fail(_graph: Any, _inputs: Any) -> Callable[..., Any]:
    raise RuntimeError("no compiler for this machine")


torch._dynamo.register_backend(compiler_fn=count, name=COUNTING)
torch._dynamo.register_backend(compiler_fn=fail, name=FAILING)


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counts.__init__()  # type: ignore[misc]
    yield
    torch._dynamo.reset()


def load(folder: Path, torch_compile: dict[str, Any] | None, type_: str = "SingleDevice") -> LoadedModel:
    return initializer_for(entry(folder, torch_compile, type_)).load(
        entry(folder, torch_compile, type_), lambda _: None
    )


def entry(folder: Path, torch_compile: dict[str, Any] | None, type_: str = "SingleDevice") -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "tests/model",
                "initialization": {
                    "hf_model_id": str(folder),
                    "initializer": {"type": type_, "dtype": "float32", "torch_compile": torch_compile},
                },
                "generation": {"max_batch_size": 4, "max_batch_tokens": 16, "kv_cache_tokens": 2048},
            },
            "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 2},
        }
    )


def greedy(folder: Path, loaded: LoadedModel) -> list[list[int]]:
    """What follows each prompt, all of them running together: prefills in chunks of 16 tokens beside decodes."""
    engine = build_engine(entry(folder, None), loaded)
    sampling = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    for number, text in enumerate(PROMPTS):
        prompt = TextPrompt((TextSegment(text, trusted=True),))
        engine.submit(engine.prepare(GenerationRequest(request_id=str(number), prompt=prompt, sampling=sampling)))
    generated: list[list[int]] = [[] for _ in PROMPTS]
    while engine.has_work:
        for output in engine.step():
            assert output.fault is None
            generated[int(output.request_id)] += output.token_ids
    return generated


@pytest.mark.parametrize("type_", ["SingleDevice", "DeviceMap"])
def test_every_step_size_has_a_graph_before_the_model_serves_and_gives_the_same_text(
    tiny_llama: Path, type_: str
) -> None:
    expected = greedy(tiny_llama, load(tiny_llama, None, type_))
    loaded = load(tiny_llama, {"backend": COUNTING, "fullgraph": type_ == "SingleDevice"}, type_)
    assert loaded.note == ""
    num_graphs, num_calls = counts.num_graphs, counts.num_calls
    if type_ == "SingleDevice":
        assert num_graphs == len([1, 2, 4, 8, 16])
    assert greedy(tiny_llama, loaded) == expected
    assert counts.num_calls > num_calls
    assert counts.num_graphs == num_graphs, "something was compiled while serving"


def test_dynamic_shapes_need_a_graph_for_one_token_and_one_for_all_other_sizes(tiny_llama: Path) -> None:
    expected = greedy(tiny_llama, load(tiny_llama, None))
    loaded = load(tiny_llama, {"backend": COUNTING, "dynamic": True})
    num_graphs = counts.num_graphs
    assert num_graphs <= 4
    assert greedy(tiny_llama, loaded) == expected
    assert counts.num_graphs == num_graphs, "something was compiled while serving"


def test_inductor_really_compiles_and_gives_the_same_text(tiny_llama: Path, tmp_path: Path) -> None:
    expected = greedy(tiny_llama, load(tiny_llama, None))
    loaded = load(tiny_llama, {"backend": "inductor", "dynamic": True, "fullgraph": True})
    assert loaded.note == ""
    assert list(tmp_path.rglob("*.so")), "no machine code was made"
    assert greedy(tiny_llama, loaded) == expected


def test_a_compiler_that_fails_is_told_and_the_model_runs_eagerly(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = greedy(tiny_llama, load(tiny_llama, None))
    loaded = load(tiny_llama, {"backend": FAILING})
    assert "no compiler for this machine" in loaded.note
    assert "eagerly" in loaded.note
    assert "eagerly" in caplog.text
    assert greedy(tiny_llama, loaded) == expected


def test_an_unknown_backend_is_refused_with_the_known_ones(tiny_llama: Path) -> None:
    with pytest.raises(LoadError, match=r"torch_compile\.backend 'indctor' is none of .*inductor"):
        load(tiny_llama, {"backend": "indctor"})


def test_mode_and_options_reach_the_compiler(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def compile_nothing(forward: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
        given.append(arguments)
        return forward

    monkeypatch.setattr(torch, "compile", compile_nothing)
    load(tiny_llama, {"mode": "max-autotune"})
    load(tiny_llama, {"options": {"epilogue_fusion": True}, "dynamic": True, "fullgraph": True})
    assert given == [
        {"backend": "inductor", "mode": "max-autotune", "fullgraph": False, "dynamic": False, "options": None},
        {"backend": "inductor", "mode": None, "fullgraph": True, "dynamic": True, "options": {"epilogue_fusion": True}},
    ]
