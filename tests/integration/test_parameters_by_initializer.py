"""Every request parameter means the same on every initializer: a table of both against one plain reference.

The reference is written out here: Transformers' own forward over the whole prefix for every token (no cache, no
batch), then numpy and text search for what the parameters say. All initializers run the same tiny model in float32,
llama.cpp from a GGUF file of the same weights, and each answers the whole table at once, as it would among strangers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gateway.constraints import constraint_of
from gateway.prompts import raw_text
from gateway.protocol.completions import CompletionRequest
from gateway.sampling import sampling_params
from model_registry.contract import FinishReason, GenerationRequest, SequenceOutput, TokenLogprobs
from model_registry.schema import RegistryEntry
from tests.support.gguf_writing import write_gguf
from tests.support.tensor_parallel_group import run_group
from tests.support.tensor_parallel_rank import run_together
from workers.initializers import build_engine, initializer_for

Logits = np.ndarray[Any, np.dtype[np.float64]]
Fields = Mapping[str, Any]

EOS = 167
"""What the model says greedily, as its fifth token, to the prompt of `ENDING`; its files are made to call it an end."""
SPECIAL = (0, 2)
"""The special tokens that llama.cpp, and so all others here, take for an end too."""
TOLERANCE = 1e-3
"""Of a logprob: initializers add up in different orders, and float32 explains far less than this."""

GREEDY = {"prompt": "every worker waits", "temperature": 0, "max_tokens": 12}
SAMPLED = {"prompt": "every worker waits", "temperature": 1.2, "seed": 7, "max_tokens": 12}
ENDING = {"prompt": "the quick brown fox", "temperature": 0, "max_tokens": 12}


@dataclass(frozen=True)
class Row:
    """One parameter, and the request that it changes."""

    parameter: str
    """Field of a request; or `stopping_sequences`, which the registry says."""
    value: Any
    base: Fields

    @property
    def fields(self) -> Fields:
        return {**self.base, self.parameter: self.value}

    def __str__(self) -> str:
        """Unique in the table."""
        beside = {name: value for name, value in self.base.items() if name not in SAMPLED}
        return ", ".join(f"{name}={value!r}" for name, value in {self.parameter: self.value, **beside}.items())


TABLE = [
    Row("temperature", 0, SAMPLED),
    Row("temperature", 0.4, SAMPLED),
    Row("seed", 8, SAMPLED),
    Row("seed", -5, SAMPLED),
    Row("n", 3, SAMPLED),
    Row("top_p", 0.5, SAMPLED),
    Row("top_p", 0, SAMPLED),
    Row("top_k", 2, SAMPLED),
    Row("top_k", 40, {**SAMPLED, "top_p": 0.9}),
    Row("min_p", 0.3, SAMPLED),
    Row("min_p", 1, SAMPLED),
    Row("min_p", 0.05, {**SAMPLED, "top_k": 30, "top_p": 0.8}),
    Row("logit_bias", {"75": -100}, GREEDY),
    Row("logit_bias", {"75": 2.5, "216": 100}, GREEDY),
    Row("logit_bias", {"75": 3, "159": -3}, {**SAMPLED, "presence_penalty": 1}),
    Row("stop_token_ids", [216], GREEDY),
    Row("stop_token_ids", [75], {**GREEDY, "min_tokens": 5, "stopping_sequences": [216]}),
    Row("repetition_penalty", 0.5, GREEDY),
    Row("repetition_penalty", 3.0, SAMPLED),
    Row("presence_penalty", 2, GREEDY),
    Row("frequency_penalty", 1.5, GREEDY),
    Row("frequency_penalty", -2, SAMPLED),
    Row("max_tokens", 5, GREEDY),
    Row("stop", "prompt", GREEDY),
    Row("stop", ["never", "iii", "Niiii"], GREEDY),
    Row("stopping_sequences", ["ii", "42"], GREEDY),
    Row("stopping_sequences", [216], GREEDY),
    Row("stopping_sequences", [[159, 256], [216, 0]], GREEDY),
    Row("stopping_sequences", [[75, 75, 159]], GREEDY),
    Row("min_tokens", 9, ENDING),
    Row("min_tokens", 5, {**GREEDY, "stop": "i"}),
    Row("min_tokens", 5, {**GREEDY, "stopping_sequences": [75]}),
    Row("ignore_eos", True, ENDING),
    Row("structured_outputs", {"regex": "[a-z ]{4,9}!"}, GREEDY),
    Row("structured_outputs", {"regex": "[a-z ]{2,40}!"}, {**SAMPLED, "min_tokens": 5, "logprobs": 1}),
    Row("structured_outputs", {"choice": ["yes", "no"]}, {**SAMPLED, "top_k": 3, "ignore_eos": True}),
    Row("logprobs", 0, {**GREEDY, "stop": "prompt"}),
    Row("logprobs", 1, ENDING),
    Row("echo", True, {**GREEDY, "prompt": "the quick brown fox jumps " * 6, "logprobs": 3}),
    Row("echo", True, {"prompt": "the quick brown fox", "temperature": 0, "max_tokens": 0, "logprobs": 0}),
    Row("logprobs", 5, {**SAMPLED, "top_k": 5, "repetition_penalty": 3.0, "n": 2}),
]
NOT_ABOUT_TOKENS = {
    "model",
    "prompt",
    "use_prompt_format",
    "stream",
    "stream_options",
    "best_of",
    "user",
    "prompt_cache_key",
    "timing",
    "suffix",  # what it comes to is another prompt: see test_infill.py
}


# The plain reference


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    logprobs: list[Logits]
    """Of the whole vocabulary at each position."""
    text: str
    finish_reason: str
    prompt: list[int]
    prompt_logprobs: list[Logits]
    """Of the whole vocabulary at each position of the prompt but the first."""


class PlainModel:
    """A model by its simplest use."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._logits = cache(self._forward)

    def answer(self, fields: Fields, index: int = 0) -> Answer:
        """Choice `index` of what a request gets."""
        prompt = self._tokenizer(fields["prompt"], add_special_tokens=False)["input_ids"]
        before = [log_softmax(self._logits(tuple(prompt[:end]))) for end in range(1, len(prompt)) if "echo" in fields]
        token_ids: list[int] = []
        logprobs: list[Logits] = []
        if not fields["max_tokens"]:
            return Answer(token_ids, logprobs, "", "length", prompt, before)
        while True:
            logits = self._logits(tuple(prompt + token_ids))
            logprobs.append(log_softmax(logits))
            logits = penalized(logits, prompt, token_ids, fields)
            if "structured_outputs" in fields:
                self._restrict(logits, token_ids, fields)
            token_ids.append(chosen(logits, fields, random_number(fields.get("seed", 0) + index, len(token_ids))))
            text, finish_reason = self._ended(token_ids, fields)
            if finish_reason:
                return Answer(token_ids, logprobs, text, finish_reason, prompt, before)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _forward(self, token_ids: tuple[int, ...]) -> Logits:
        logits: Logits = self._model(torch.tensor([token_ids])).logits[0, -1].double().numpy()
        return logits

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _restrict(self, logits: Logits, token_ids: list[int], fields: Fields) -> None:
        """Leave the tokens after which the text can still become what it must be, and an end where it is that."""
        pattern, text = pattern_of(fields), self._decode(token_ids)
        for token_id in range(len(logits)):
            follows = self._decode([*token_ids, token_id])
            is_end = token_id in (EOS, *SPECIAL)
            may_come = bool(pattern.fullmatch(text)) if is_end else bool(pattern.fullmatch(follows, partial=True))
            if not may_come or (not is_end and follows == text):
                logits[token_id] = -np.inf

    def _ended(self, token_ids: list[int], fields: Fields) -> tuple[str, str]:
        """The text without its stop, and why it ends here, if it does."""
        if token_ids[-1] in end_ids(fields):
            return self._decode(token_ids[:-1]), "stop"
        min_tokens = fields.get("min_tokens", 0)
        if len(token_ids) >= min_tokens:
            for stop in token_stops(fields):
                if token_ids[-len(stop) :] == stop:
                    return self._decode(token_ids[: -len(stop)]), "stop"
        text = self._decode(token_ids)
        if "structured_outputs" in fields and is_complete(text, fields):
            return text, "stop"
        since = len(self._decode(token_ids[: max(0, min_tokens - 1)]))
        found = [
            (text.find(stop, since) + len(stop), -len(stop)) for stop in text_stops(fields) if stop in text[since:]
        ]
        if found:  # the first that is complete, and of several the longest
            end, minus_length = min(found)
            return text[: end + minus_length], "stop"
        return text, "length" if len(token_ids) == fields["max_tokens"] else ""


def log_softmax(logits: Logits) -> Logits:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()  # type: ignore[no-any-return]


def end_ids(fields: Fields) -> set[int]:
    return set() if fields.get("ignore_eos") else {EOS, *SPECIAL}


def token_stops(fields: Fields) -> list[list[int]]:
    stops = [stop for stop in fields.get("stopping_sequences", []) if not isinstance(stop, str)]
    stops += fields.get("stop_token_ids", [])
    return [[stop] if isinstance(stop, int) else stop for stop in stops]


def text_stops(fields: Fields) -> list[str]:
    given = fields.get("stop", [])
    registered = [stop for stop in fields.get("stopping_sequences", []) if isinstance(stop, str)]
    return registered + ([given] if isinstance(given, str) else given)


def pattern_of(fields: Fields) -> regex.Pattern[str]:
    wanted = fields["structured_outputs"]
    return regex.compile(wanted["regex"] if "regex" in wanted else "|".join(map(regex.escape, wanted["choice"])))


def is_complete(text: str, fields: Fields) -> bool:
    """It fits, and nothing can follow it; the patterns of the table ask for ASCII only."""
    others = map(chr, range(32, 127))
    pattern = pattern_of(fields)
    return bool(pattern.fullmatch(text)) and not any(pattern.fullmatch(text + one, partial=True) for one in others)


def penalized(logits: Logits, prompt: list[int], generated: list[int], fields: Fields) -> Logits:
    logits = logits.copy()
    if len(generated) < fields.get("min_tokens", 0):
        logits[[*end_ids(fields), *(stop[0] for stop in token_stops(fields) if len(stop) == 1)]] = -np.inf
    for key, bias in fields.get("logit_bias", {}).items():
        logits[int(key)] += bias
    for token_id in {*prompt, *generated}:
        penalty = fields.get("repetition_penalty", 1)
        logits[token_id] *= penalty if logits[token_id] < 0 else 1 / penalty
    for token_id, count in Counter(generated).items():
        logits[token_id] -= fields.get("presence_penalty", 0) + count * fields.get("frequency_penalty", 0)
    return logits


def chosen(logits: Logits, fields: Fields, number: float) -> int:
    """The token where the probabilities of those that are left, added up, pass the number.

    They are added up by id; with top-k or top-p, likeliest first.
    """
    if fields["temperature"] == 0:
        return int(logits.argmax())
    weights = np.exp((logits - logits.max()) / fields["temperature"])
    weights[weights < fields.get("min_p", 0)] = 0
    kept = np.arange(len(logits))
    top_k, top_p = fields.get("top_k", 0), fields.get("top_p", 1)
    if top_k or top_p < 1:
        kept = np.argsort(-logits, kind="stable")[: top_k or None]
        before = np.cumsum(weights[kept]) - weights[kept]
        kept = kept[: max(1, int((before < top_p * weights[kept].sum()).sum()))]
    sums = np.cumsum(weights[kept])
    return int(kept[np.searchsorted(sums, number * sums[-1], side="right")])


def random_number(seed: int, position: int) -> float:
    """As `Sequence.draw` says: a hash of the position, keyed by the seed, of which 63 bits count."""
    key = (seed % 2**63).to_bytes(16, "little")
    digest = hashlib.blake2b(position.to_bytes(8, "little"), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


# The initializers


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an end of sequence that it says, as a Hugging Face folder and, in it, as a GGUF file."""
    copy = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(tiny_llama, copy)
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [EOS, *SPECIAL]}))
    write_gguf(copy, copy / "tiny.gguf", eos_token_id=EOS)
    return copy


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainModel:
    return PlainModel(folder)


def requests(entry: RegistryEntry) -> list[GenerationRequest]:
    """The whole table as the gateway sends it, a request per row and choice."""
    made = []
    for row in TABLE:
        fields = {name: value for name, value in row.fields.items() if name != "stopping_sequences"}
        parsed = CompletionRequest.parse(json.dumps({"model": "m", **fields}).encode(), max_choices=8)
        generation = entry.model.generation.model_copy(
            update={"stopping_sequences": row.fields.get("stopping_sequences", [])}
        )
        stopping = entry.model_copy(update={"model": entry.model.model_copy(update={"generation": generation})})
        choices = sampling_params(
            parsed,
            stopping,
            max_tokens=parsed.max_tokens,
            default_max_tokens=None,
            num_logprobs=parsed.logprobs,
            echo=bool(parsed.echo),
            num_prompt_logprobs=parsed.logprobs if parsed.echo else None,
            constraint=constraint_of(None, parsed.structured_outputs),
        )
        for index, sampling in enumerate(choices):
            made.append(
                GenerationRequest(request_id=f"{row} {index}", prompt=raw_text(row.fields["prompt"]), sampling=sampling)
            )
    return made


def entry_of(folder: Path, **initializer: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": "tests/model",
                "initialization": {"hf_model_id": str(folder), "initializer": initializer},
                "generation": {"max_batch_size": 8, "kv_cache_tokens": 1024, "max_model_len": 256},
            },
            "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 1},
        }
    )


def run_in_this_process(entry: RegistryEntry) -> dict[str, SequenceOutput]:
    loaded = initializer_for(entry).load(entry, lambda line: None)
    return run_together(build_engine(entry, loaded), requests(entry))


INITIALIZERS: dict[str, dict[str, Any]] = {
    "SingleDevice": {"dtype": "float32"},
    "DeviceMap": {"dtype": "float32", "device_map": "cpu"},
    "DeepSpeed": {"dtype": "float32"},
    # Left to itself llama.cpp keeps keys and values in half precision, and computes its attention in it.
    "LlamaCpp": {
        "model_filename": "tiny.gguf",
        "model_init_kwargs": {"type_k": "f32", "type_v": "f32", "flash_attn": False},
    },
}


@pytest.fixture(scope="module", params=INITIALIZERS)
def answers(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SequenceOutput]:
    """What one initializer answers to the whole table, all of it running together."""
    entry = entry_of(folder, type=request.param, **INITIALIZERS[request.param])
    if request.param == "DeepSpeed":
        return run_group(folder, 2, tmp_path_factory.mktemp("ranks"), requests(entry)).outputs
    return run_in_this_process(entry)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_a_parameter_means_what_the_plain_reference_says(
    answers: dict[str, SequenceOutput], plain: PlainModel, row: Row
) -> None:
    for index in range(row.fields.get("n", 1)):
        expected = plain.answer(row.fields, index)
        output = answers[f"{row} {index}"]
        assert list(output.token_ids) == expected.token_ids
        assert output.text == expected.text
        assert output.finish_reason == FinishReason(expected.finish_reason)
        assert_logprobs_equal(output.logprobs, output.token_ids, expected.logprobs, row.fields.get("logprobs"))
        if row.fields.get("echo"):
            assert output.prompt is not None
            assert output.prompt.text == row.fields["prompt"]
            first, *others = output.prompt.logprobs
            assert first.chosen.token_id == expected.prompt[0]
            assert_logprobs_equal(others, expected.prompt[1:], expected.prompt_logprobs, row.fields["logprobs"])


def assert_logprobs_equal(
    tokens: Sequence[TokenLogprobs], token_ids: Sequence[int], expected: Sequence[Logits], num_logprobs: int | None
) -> None:
    assert len(tokens) == (0 if num_logprobs is None else len(token_ids))
    for position, (token, logprobs) in enumerate(zip(tokens, expected, strict=False)):
        assert token.chosen.token_id == token_ids[position]
        for one in (token.chosen, *token.top):
            assert one.logprob == pytest.approx(logprobs[one.token_id], abs=TOLERANCE)
        # Which of two that are equal within the tolerance comes first is not for this test to say.
        likeliest = np.sort(logprobs)[::-1][: len(token.top)]
        assert len(token.top) == num_logprobs
        assert [one.logprob for one in token.top] == pytest.approx(likeliest, abs=TOLERANCE)


@pytest.mark.parametrize("row", [row for row in TABLE if row.parameter not in ("logprobs", "echo")], ids=str)
def test_a_row_would_notice_if_its_parameter_were_ignored(plain: PlainModel, row: Row) -> None:
    index = row.fields.get("n", 1) - 1
    with_it = plain.answer(row.fields, index)
    without = plain.answer({"temperature": 1.0, **row.base})
    assert (with_it.token_ids, with_it.text) != (without.token_ids, without.text)


def test_every_field_that_is_about_tokens_has_a_row() -> None:
    """`only_neutral` fields have no type of their own: they are refused where they would mean something."""
    honoured = {name for name, field in CompletionRequest.model_fields.items() if field.annotation is not Any}
    assert honoured - NOT_ABOUT_TOKENS == {row.parameter for row in TABLE} - {"stopping_sequences"}
