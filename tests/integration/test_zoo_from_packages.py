"""The models of the zoo that packages alone can run, each as its file says: fetched, loaded, asked for a few tokens.

No list of them stands here, so a new one is run too.
"""

from __future__ import annotations

import pytest

from model_registry.contract import FinishReason, GenerationRequest, SamplingParams, TextPrompt, TextSegment
from model_registry.loader import ZOO, load_registry
from model_registry.schema import RegistryEntry
from workers.engine.engine import Engine
from workers.initializers import build_engine, initializer_for

MAX_TOKENS = 8


def runs_from_packages(entry: RegistryEntry) -> bool:
    initialization = entry.model.initialization
    has_weights = initialization.python_package is not None or initialization.initializer.type == "Echo"
    return has_weights and entry.scaling.num_gpus_per_worker == 0


ENTRIES = [entry for entry in load_registry(ZOO).entries.values() if runs_from_packages(entry)]


def on_one_cpu(entry: RegistryEntry) -> RegistryEntry:
    """llama.cpp's threads wait for each other by spinning, and tests share their cores."""
    return entry.model_copy(update={"scaling": entry.scaling.model_copy(update={"num_cpus_per_worker": 1.0})})


def complete(engine: Engine, text: str) -> tuple[str, FinishReason | None]:
    sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    prompt = TextPrompt((TextSegment(text, trusted=False),))
    engine.submit(engine.prepare(GenerationRequest(request_id="asked", prompt=prompt, sampling=sampling)))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return "".join(output.text for output in outputs), outputs[-1].finish_reason


@pytest.mark.timeout(600)  # each may have to be fetched
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.model_id)
def test_a_model_that_needs_no_more_than_packages_counts_on(entry: RegistryEntry) -> None:
    entry = on_one_cpu(entry)
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda _line: None))
    text, finish_reason = complete(engine, "1, 2, 3, 4, 5,")
    assert text.strip().startswith("1, 2" if entry.model_id == "aviary/echo" else "6, 7")
    assert finish_reason is FinishReason.LENGTH
