"""Embeddings inside the engine: in batches between steps, whatever runs beside them, and each with its own faults."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from model_registry.contract import (
    NOTHING,
    Embed,
    FaultKind,
    GenerationRequest,
    RequestFaultError,
    SamplingParams,
    SequenceOutput,
    TextPrompt,
    TextSegment,
    TokenPrompt,
)
from workers.engine.echo import BLOCK_SIZE, VOCAB_SIZE, ByteTokenizer, EchoEmbedder, EchoRunner, EchoSampler
from workers.engine.embeddings import Embedder, Passage
from workers.engine.engine import Engine, EngineLimits, EngineSizes
from workers.engine.paged_kv_cache import PagedKVCache
from workers.errors import DeviceLostError
from workers.runners.grammar import GrammarCompiler


class WatchedEmbedder(EchoEmbedder):
    """Remembers its batches; fails on prompts that hold a `!`, and is lost on a `?`."""

    def __init__(self) -> None:
        super().__init__(normalizes=False, can_be_cut=False)
        self.batches: list[int] = []

    def embed(self, passages: Sequence[Passage]) -> list[bytes]:
        self.batches.append(len(passages))
        if any(ord("?") in passage.token_ids for passage in passages):
            raise DeviceLostError("gone")
        if any(ord("!") in passage.token_ids for passage in passages):
            raise RuntimeError("this one is bad")
        return super().embed(passages)


class PaddingEmbedder(WatchedEmbedder):
    """Pads all prompts of a batch to the longest."""

    def num_computed(self, lengths: Sequence[int]) -> int:
        return len(lengths) * max(lengths)


def make_engine(embedder: Embedder | None, *, max_input_tokens: int | None = None, generates: bool = True) -> Engine:
    limits = EngineLimits(max_model_len=64, max_batch_size=4, max_batch_tokens=16, max_input_tokens=max_input_tokens)
    sizes = EngineSizes(lambda: PagedKVCache(64, BLOCK_SIZE), limits)
    tokenizer = ByteTokenizer()
    constraints = GrammarCompiler(tokenizer)
    return Engine(EchoRunner(64), EchoSampler(), tokenizer, constraints, sizes, embedder, generates=generates)


def text(content: str) -> TextPrompt:
    return TextPrompt((TextSegment(content, trusted=False),), has_closing=True)


def submit(engine: Engine, content: str, *, dimensions: int | None = None) -> None:
    task = Embed(dimensions)
    request = GenerationRequest(request_id=content, prompt=text(content), sampling=NOTHING, task=task)
    engine.submit_embedding(engine.prepare_embedding(request, task))


def generate(engine: Engine, content: str) -> None:
    request = GenerationRequest(request_id=content, prompt=text(content), sampling=SamplingParams())
    engine.submit(engine.prepare(request))


def vector_of(output: SequenceOutput) -> tuple[float, ...]:
    return struct.unpack(f"<{len(output.embedding) // 4}f", output.embedding)


def drain(engine: Engine) -> dict[str, SequenceOutput]:
    ended: dict[str, SequenceOutput] = {}
    while engine.has_work:
        for output in engine.step():
            if output.is_final:
                assert output.request_id not in ended
                ended[output.request_id] = output
    return ended


def test_a_vector_comes_with_the_prompts_tokens_counted() -> None:
    engine = make_engine(WatchedEmbedder())
    submit(engine, "aab")
    output = drain(engine)["aab"]
    assert len(vector_of(output)) == VOCAB_SIZE
    assert (vector_of(output)[ord("a")], vector_of(output)[ord("b")]) == (2, 1)
    assert output.usage is not None
    assert (output.usage.prompt_tokens, output.usage.completion_tokens) == (4, 0)
    assert engine.status().prompt_tokens_total == 4


def test_a_batch_has_as_many_tokens_as_a_step_or_one_prompt_that_has_more() -> None:
    embedder = WatchedEmbedder()
    engine = make_engine(embedder)
    for content in ("a" * 7, "b" * 7, "c" * 7, "d" * 40, "e"):
        submit(engine, content)
    assert engine.status().num_waiting == 5
    drain(engine)
    assert embedder.batches == [2, 1, 1, 1]


def test_padding_counts_as_what_is_computed() -> None:
    embedder = PaddingEmbedder()
    engine = make_engine(embedder)
    for content in ("a" * 7, "b", "c", "d" * 3, "e" * 3, "f" * 40, "g", "h"):
        submit(engine, content)
    drain(engine)
    assert embedder.batches == [2, 3, 1, 2]  # 8 + 8, 4 + 4 + 4, 41, 2 + 2 tokens of at most 16


def test_generations_lose_one_batch_per_step_and_no_more() -> None:
    embedder = WatchedEmbedder()
    engine = make_engine(embedder)
    generate(engine, "hello")
    for content in ("a" * 15, "b" * 15, "c" * 15):
        submit(engine, content)
    for num_steps in (1, 2, 3):
        outputs = engine.step()
        assert len(embedder.batches) == num_steps
        assert [output.text for output in outputs if output.text] == ["hello"[num_steps - 1]]
    assert drain(engine)["hello"].finish_reason


def test_only_the_prompt_that_fails_alone_ends() -> None:
    embedder = WatchedEmbedder()
    engine = make_engine(embedder)
    for content in ("aa", "a!", "bb"):
        submit(engine, content)
    ended = drain(engine)
    assert {name: output.fault is None for name, output in ended.items()} == {"aa": True, "a!": False, "bb": True}
    assert embedder.batches == [3, 1, 1, 1]


def test_a_lost_device_ends_the_engine() -> None:
    engine = make_engine(WatchedEmbedder())
    submit(engine, "a?")
    with pytest.raises(DeviceLostError):
        engine.step()


def test_what_is_aborted_is_not_computed() -> None:
    embedder = WatchedEmbedder()
    engine = make_engine(embedder)
    submit(engine, "aa")
    engine.abort("aa")
    assert not engine.has_work
    assert (engine.step(), embedder.batches) == ([], [])


def test_steps_that_only_embed_are_progress_too() -> None:
    engine = make_engine(WatchedEmbedder())
    submit(engine, "aa")
    engine.step()
    assert engine.status().num_steps == 1


def test_an_id_belongs_to_one_request_whatever_it_wants() -> None:
    engine = make_engine(WatchedEmbedder())
    submit(engine, "aa")
    with pytest.raises(RequestFaultError, match="already running"):
        generate(engine, "aa")
    generate(engine, "bb")
    with pytest.raises(RequestFaultError, match="already running"):
        submit(engine, "bb")


@pytest.mark.parametrize(
    ("content", "max_input_tokens", "message"),
    [("x" * 64, None, "maximum context length is 64 tokens.*65"), ("x" * 8, 8, "at most 8 tokens")],
)
def test_an_input_that_is_too_long_is_refused(content: str, max_input_tokens: int | None, message: str) -> None:
    engine = make_engine(WatchedEmbedder(), max_input_tokens=max_input_tokens)
    with pytest.raises(RequestFaultError, match=message) as raised:
        submit(engine, content)
    assert raised.value.fault.kind is FaultKind.CONTEXT_LENGTH_EXCEEDED
    submit(engine, content[:-1] if max_input_tokens is None else content[:-2])


def test_a_prompt_that_fills_the_context_needs_no_room_for_an_answer() -> None:
    engine = make_engine(WatchedEmbedder())
    submit(engine, "x" * 63)
    assert drain(engine)["x" * 63].embedding


def test_ids_outside_the_vocabulary_are_refused() -> None:
    task = Embed()
    request = GenerationRequest(request_id="a", prompt=TokenPrompt((VOCAB_SIZE,)), sampling=NOTHING, task=task)
    with pytest.raises(RequestFaultError, match="below 258"):
        make_engine(WatchedEmbedder()).prepare_embedding(request, task)


@pytest.mark.parametrize("normalizes", [True, False])
def test_a_vector_is_cut_where_the_model_allows_it(normalizes: bool) -> None:
    engine = make_engine(EchoEmbedder(normalizes=normalizes, can_be_cut=True))
    submit(engine, "aab", dimensions=98)
    vector = vector_of(drain(engine)["aab"])
    assert len(vector) == 98
    assert vector[ord("a")] == (1 if normalizes else 2)


@pytest.mark.parametrize(
    ("can_be_cut", "dimensions", "message"),
    [(True, 259, "259 is more than the 258"), (False, 257, "cannot be cut to 257.* embedding.dimensions")],
)
def test_dimensions_that_cannot_be_had_are_refused(can_be_cut: bool, dimensions: int, message: str) -> None:
    engine = make_engine(EchoEmbedder(normalizes=True, can_be_cut=can_be_cut))
    with pytest.raises(RequestFaultError, match=message) as raised:
        submit(engine, "a", dimensions=dimensions)
    assert raised.value.fault.param == "dimensions"
    submit(engine, "a", dimensions=258)


def test_a_model_that_only_embeds_says_so_to_whoever_wants_text() -> None:
    engine = make_engine(WatchedEmbedder(), generates=False)
    with pytest.raises(RequestFaultError, match="cannot generate") as raised:
        generate(engine, "a")
    assert raised.value.fault.param == "model"
    submit(engine, "a")
    assert drain(engine)["a"].embedding


def test_a_model_that_makes_no_embeddings_says_so() -> None:
    with pytest.raises(RequestFaultError, match="makes no embeddings") as raised:
        submit(make_engine(None), "a")
    assert raised.value.fault.param == "model"
