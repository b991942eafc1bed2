"""Strict JSON schemas on the real small model: whatever it says, at whatever temperature, fits.

A few texts per schema here; `make fuzz` asks for a thousand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.constraints import constraint_of
from gateway.protocol.chat import ChatCompletionRequest
from model_registry.contract import ChatMessage, ChatPrompt, FinishReason, GenerationRequest, SamplingParams
from model_registry.loader import ZOO, load_entry
from tests.support.tensor_parallel_rank import run_together
from workers.engine.engine import Engine
from workers.initializers import build_engine, initializer_for

BATCH_SIZE = 32
MAX_TOKENS = 400
WORD = {"type": "string", "maxLength": 24}


def strict(**properties: Any) -> dict[str, Any]:
    """An object as OpenAI's strict mode wants it: all properties are required, and there are no others."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any]] = {
    "a person": strict(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 130}, is_member={"type": "boolean"}),
    "a date": strict(date={"type": "string", "format": "date"}, weekday={"enum": ["Monday", "Friday", "Sunday"]}),
    "a price": strict(
        amount={"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.01},
        currency={"type": "string", "pattern": "^[A-Z]{3}$"},
    ),
    "a shopping list": strict(items={"type": "array", "items": WORD, "minItems": 1, "maxItems": 4}),
    "an answer that may be missing": strict(answer={"anyOf": [WORD, {"type": "null"}]}, source={"const": "memory"}),
    "a family tree": {
        "$defs": {
            "person": strict(name=WORD, parent={"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]}),
            "leaf": strict(name=WORD),
        },
        "$ref": "#/$defs/person",
    },
    "a shape": {
        "anyOf": [
            strict(kind={"const": "circle"}, radius={"type": "integer", "minimum": 1, "maximum": 99}),
            strict(
                kind={"const": "box"},
                sides={"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2},
            ),
        ]
    },
    "contact details": strict(
        id={"type": "string", "format": "uuid"},
        address=strict(street=WORD, town=WORD, code={"type": "string", "pattern": "^[0-9]{5}$"}),
    ),
    "a report": strict(
        title=WORD,
        steps={"type": "array", "maxItems": 3, "items": strict(what=WORD, done={"type": "boolean"})},
        score={"type": ["integer", "null"], "minimum": -5, "maximum": 5},
    ),
    "text in other scripts": strict(größe={"enum": ["klein", "groß", "大きい"]}, bemerkung=WORD),
}


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Engine:
    entry = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml")
    generation = entry.model.generation.model_copy(update={"max_batch_size": BATCH_SIZE})
    entry = entry.model_copy(update={"model": entry.model.model_copy(update={"generation": generation})})
    return build_engine(entry, initializer_for(entry).load(entry, lambda line: None))


def requests(num_per_schema: int) -> Sequence[GenerationRequest]:
    made = []
    for what, schema in SCHEMAS.items():
        form = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": form}
        parsed = ChatCompletionRequest.parse(json.dumps(body).encode(), max_choices=1)
        for seed in range(num_per_schema):
            sampling = SamplingParams(
                max_tokens=MAX_TOKENS,
                temperature=0.2 + 1.6 * seed / num_per_schema,
                seed=seed,
                constraint=constraint_of(parsed.response_format, None),
            )
            prompt = ChatPrompt((ChatMessage("user", f"Make up {what} and give it as JSON."),))
            made.append(GenerationRequest(request_id=f"{what} {seed}", prompt=prompt, sampling=sampling))
    return made


@pytest.mark.timeout(3600)
def test_every_text_fits_its_schema(engine: Engine, rounds: int) -> None:
    num_per_schema = 2 * rounds
    outputs = run_together(engine, requests(num_per_schema))
    assert len(outputs) == num_per_schema * len(SCHEMAS)
    for request_id, output in outputs.items():
        assert output.finish_reason is FinishReason.STOP, request_id
        schema = SCHEMAS[request_id.rpartition(" ")[0]]
        jsonschema.validate(json.loads(output.text), schema, format_checker=jsonschema.FormatChecker())
