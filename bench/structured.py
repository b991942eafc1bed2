"""What a constraint costs: tokens per second of the engine with a JSON schema on every sequence against without.

Both generate the same number of tokens; the schema is one that no text of that length completes.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Final

from model_registry.contract import (
    ChatMessage,
    ChatPrompt,
    Constraint,
    ConstraintKind,
    GenerationRequest,
    SamplingParams,
)
from model_registry.loader import ZOO, load_entry
from workers.engine.engine import Engine
from workers.initializers import build_engine, initializer_for

NEW_TOKENS: Final = 96
BATCH_SIZES: Final = (1, 8)
SCHEMA: Final = {
    "type": "array",
    "minItems": 50,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"enum": ["a", "b"]}},
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    },
}


def measure(rounds: int) -> None:
    entry = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml")
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda line: print(f"  {line}")))
    print(f"\n{entry.model_id}: {NEW_TOKENS} new tokens each, median of {rounds} alternating rounds\n")
    print(f"{'concurrent':>10} {'free tok/s':>11} {'JSON tok/s':>11} {'ratio':>6}")
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, source=json.dumps(SCHEMA), param="response_format")
    for batch_size in BATCH_SIZES:
        _tokens_per_second(engine, batch_size, constraint)  # compiles the grammar
        rates = [[_tokens_per_second(engine, batch_size, form) for form in (None, constraint)] for _ in range(rounds)]
        free, bound = (statistics.median(column) for column in zip(*rates, strict=True))
        print(f"{batch_size:>10} {free:>11.1f} {bound:>11.1f} {bound / free:>6.3f}", flush=True)


def _tokens_per_second(engine: Engine, batch_size: int, constraint: Constraint | None) -> float:
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=1, seed=1, ignore_eos=True, constraint=constraint)
    prompt = ChatPrompt((ChatMessage("user", "List some people as JSON."),))
    for number in range(batch_size):
        engine.submit(engine.prepare(GenerationRequest(request_id=str(number), prompt=prompt, sampling=sampling)))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return batch_size * NEW_TOKENS / (time.perf_counter() - started)
