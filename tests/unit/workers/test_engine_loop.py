"""The engine's thread: work in from any thread, frames out, nothing left behind."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from model_registry.contract import (
    NOTHING,
    Detokenize,
    Embed,
    FaultKind,
    Frame,
    GenerationRequest,
    SamplingParams,
    SequenceOutput,
    Task,
    TextPrompt,
    TextSegment,
    Tokenize,
    Tokenized,
    TokenPrompt,
)
from workers.engine.echo import BLOCK_SIZE, VOCAB_SIZE, ByteTokenizer, EchoEmbedder, EchoRunner, EchoSampler
from workers.engine.engine import Engine, EngineLimits, EngineSizes
from workers.engine.loop import NUM_TOKENIZER_THREADS, EngineLoop
from workers.engine.paged_kv_cache import PagedKVCache
from workers.engine.runner import StepPlan
from workers.engine.sequence import Sequence
from workers.errors import DeviceLostError, LoadError
from workers.runners.grammar import GrammarCompiler

WAIT_S = 10


def make_engine(runner: EchoRunner | None = None) -> Engine:
    limits = EngineLimits(max_model_len=256, max_batch_size=4, max_batch_tokens=64)
    return Engine(
        runner or EchoRunner(64, step_time_s=0.0005),
        EchoSampler(),
        ByteTokenizer(),
        GrammarCompiler(ByteTokenizer()),
        EngineSizes(lambda: PagedKVCache(64, BLOCK_SIZE), limits),
        EchoEmbedder(normalizes=False, can_be_cut=False),
    )


class Reader:
    """Collects frames and waits for outputs."""

    def __init__(self) -> None:
        self.frames: queue.Queue[Frame] = queue.Queue()
        self.seen: dict[str, SequenceOutput] = {}

    def until_final(self, request_id: str) -> SequenceOutput:
        while True:
            for output in self.frames.get(timeout=WAIT_S).outputs:
                known = self.seen.get(output.request_id)
                self.seen[output.request_id] = known.followed_by(output) if known else output
            if request_id in self.seen and self.seen[request_id].is_final:
                return self.seen[request_id]


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def loop(reader: Reader) -> Iterator[EngineLoop]:
    loop = EngineLoop(make_engine(), reader.frames.put)
    loop.start()
    yield loop
    loop.stop(WAIT_S)


def request(request_id: str, text: str, **sampling: object) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt=TextPrompt((TextSegment(text, trusted=True),)),
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )


def test_requests_submitted_together_are_answered(loop: EngineLoop, reader: Reader) -> None:
    loop.submit([request("a", "first"), request("b", "second")])
    assert reader.until_final("a").text == "first"
    assert reader.until_final("b").text == "second"


def test_each_task_is_answered_in_its_own_way_while_a_text_is_generated(loop: EngineLoop, reader: Reader) -> None:
    prompt = TextPrompt((TextSegment("abc", trusted=True),))
    tasks: dict[str, Task] = {"tokens": Tokenize(), "vector": Embed()}
    loop.submit([request("text", "hello" * 10)])
    loop.submit(
        [GenerationRequest(request_id=name, prompt=prompt, sampling=NOTHING, task=tasks[name]) for name in tasks]
    )
    tokens = TokenPrompt((97, 98, 256))
    loop.submit([GenerationRequest(request_id="back", prompt=tokens, sampling=NOTHING, task=Detokenize())])
    assert reader.until_final("tokens").tokenized == Tokenized((97, 98, 99, 256))
    assert len(reader.until_final("vector").embedding) == 4 * VOCAB_SIZE
    assert reader.until_final("back").text == "ab<end of prompt>"
    assert reader.until_final("text").text == "hello" * 10


def test_tokens_are_told_of_prompts_that_no_context_holds(loop: EngineLoop, reader: Reader) -> None:
    prompt = TextPrompt((TextSegment("x" * 1000, trusted=True),))
    loop.submit([GenerationRequest(request_id="long", prompt=prompt, sampling=NOTHING, task=Tokenize())])
    tokenized = reader.until_final("long").tokenized
    assert tokenized is not None
    assert len(tokenized.token_ids) == 1001


def test_a_request_that_cannot_be_prepared_gets_its_fault_in_a_frame(loop: EngineLoop, reader: Reader) -> None:
    loop.submit([request("long", "x" * 1000)])
    fault = reader.until_final("long").fault
    assert fault is not None
    assert fault.kind is FaultKind.CONTEXT_LENGTH_EXCEEDED


def test_an_abort_stops_the_work(loop: EngineLoop, reader: Reader) -> None:
    loop.submit([request("endless", "x" * 10, ignore_eos=True)])
    reader.frames.get(timeout=WAIT_S)
    loop.abort(["endless"])
    loop.submit([request("next", "abc")])
    reader.until_final("next")
    assert loop.status().num_running == 0


def test_an_abort_that_overtakes_the_tokenizer_wins(reader: Reader) -> None:
    tokenizing = threading.Event()
    release = threading.Event()
    engine = make_engine()
    prepare = engine.prepare

    def slow_prepare(request: object) -> Sequence:
        tokenizing.set()
        release.wait(WAIT_S)
        return prepare(request)  # type: ignore[arg-type]

    engine.prepare = slow_prepare  # type: ignore[method-assign]
    loop = EngineLoop(engine, reader.frames.put)
    loop.start()
    loop.submit([request("gone", "abc")])
    assert tokenizing.wait(WAIT_S)
    loop.abort(["gone"])
    release.set()
    loop.submit([request("kept", "abc")])
    reader.until_final("kept")
    loop.stop(WAIT_S)
    assert "gone" not in reader.seen


def test_requests_that_are_aborted_while_they_wait_for_the_tokenizer_are_never_tokenized(reader: Reader) -> None:
    release = threading.Event()
    seen: list[str] = []
    engine = make_engine()
    prepare = engine.prepare

    def slow_prepare(request: GenerationRequest) -> Sequence:
        release.wait(WAIT_S)
        seen.append(request.request_id)
        return prepare(request)

    engine.prepare = slow_prepare  # type: ignore[method-assign]
    loop = EngineLoop(engine, reader.frames.put)
    loop.start()
    loop.submit(request(f"busy{index}", "abc") for index in range(NUM_TOKENIZER_THREADS))
    loop.submit(request(f"gone{index}", "abc") for index in range(50))
    loop.abort([f"gone{index}" for index in range(50)])
    loop.submit([request("kept", "abc")])
    release.set()
    reader.until_final("kept")
    loop.stop(WAIT_S)
    assert sorted(seen) == ["busy0", "busy1", "kept"]


def test_generations_never_wait_for_what_asks_for_tokens_only(reader: Reader) -> None:
    release = threading.Event()
    engine = make_engine()
    answer = engine.answer

    def slow_answer(request: GenerationRequest, task: Tokenize | Detokenize) -> SequenceOutput:
        release.wait(WAIT_S)
        return answer(request, task)

    engine.answer = slow_answer  # type: ignore[method-assign]
    loop = EngineLoop(engine, reader.frames.put)
    loop.start()
    prompt = TokenPrompt((97,))
    for task in (Tokenize(), Detokenize(), Tokenize(), Detokenize()):
        loop.submit([GenerationRequest(request_id=f"{task}", prompt=prompt, sampling=NOTHING, task=task)])
    loop.submit([request("text", "abc")])
    try:
        assert reader.until_final("text").text == "abc"
        assert list(reader.seen) == ["text"]
    finally:
        release.set()
        loop.stop(WAIT_S)


def test_an_engine_that_fails_reports_it_once() -> None:
    class Broken(EchoRunner):
        def run(self, plan: StepPlan) -> list[int]:
            raise SystemExit("worse than any request")

    crashed: queue.Queue[BaseException] = queue.Queue()
    loop = EngineLoop(make_engine(Broken(64)), lambda frame: None, crashed.put)
    loop.start()
    loop.submit([request("a", "abc")])
    assert isinstance(crashed.get(timeout=WAIT_S), SystemExit)


def test_work_that_never_steps_shows_in_the_status() -> None:
    """Health is judged by progress: a step that hangs must leave its request visible."""
    stepping, release = threading.Event(), threading.Event()

    class Hanging(EchoRunner):
        def run(self, plan: StepPlan) -> list[int]:
            stepping.set()
            release.wait(WAIT_S)
            return super().run(plan)

    loop = EngineLoop(make_engine(Hanging(64)), lambda frame: None)
    loop.start()
    loop.submit([request("stuck", "abc")])
    assert stepping.wait(WAIT_S)
    status = loop.status()
    release.set()
    loop.stop(WAIT_S)
    assert (status.num_running + status.num_waiting, status.num_steps) == (1, 0)


def test_stopping_ends_the_thread_in_the_middle_of_work() -> None:
    loop = EngineLoop(make_engine(), lambda frame: None)
    loop.start()
    loop.submit([request("endless", "abc", ignore_eos=True)])
    loop.stop(WAIT_S)
    assert "engine" not in {thread.name for thread in threading.enumerate()}


class Done:
    """Told how a change of sizes went."""

    def __init__(self) -> None:
        self.ends: queue.Queue[tuple[int, LoadError | None]] = queue.Queue()

    def __call__(self, limits: EngineLimits, error: LoadError | None) -> None:
        self.ends.put((limits.max_model_len, error))


def sizes(max_model_len: int) -> EngineSizes:
    limits = EngineLimits(max_model_len=max_model_len, max_batch_size=1, max_batch_tokens=64)
    return EngineSizes(lambda: PagedKVCache(64, BLOCK_SIZE), limits)


def test_other_sizes_are_taken_at_once_while_nothing_runs(loop: EngineLoop, reader: Reader) -> None:
    done = Done()
    loop.resize(lambda: sizes(16), done)
    assert done.ends.get(timeout=WAIT_S) == (16, None)
    loop.submit([request("long", "x" * 20), request("short", "abc")])
    assert reader.until_final("long").fault is not None
    assert reader.until_final("short").text == "abc"


def test_other_sizes_wait_for_a_sequence_that_needs_the_present_ones(loop: EngineLoop, reader: Reader) -> None:
    loop.submit([request("long", "x" * 99)])
    while not loop.status().num_running:
        time.sleep(0.001)
    replaced, done = Done(), Done()
    loop.resize(lambda: sizes(16), replaced)
    loop.resize(lambda: sizes(32), done)
    while loop._engine._max_model_len != 32:
        time.sleep(0.001)
    loop.submit([request("refused", "x" * 50)])
    refused = reader.until_final("refused").fault
    assert refused is not None
    assert "maximum context length is 32 tokens" in refused.message
    assert done.ends.empty(), "it still runs"
    assert reader.until_final("long").text == "x" * 99
    assert done.ends.get(timeout=WAIT_S) == (32, None)
    assert replaced.ends.empty()


def test_sizes_that_cannot_be_had_are_told_and_the_loop_goes_on(loop: EngineLoop, reader: Reader) -> None:
    def no_memory() -> PagedKVCache:
        raise MemoryError("no room")

    done = Done()
    loop.resize(lambda: EngineSizes(no_memory, sizes(16).limits), done)
    max_model_len, error = done.ends.get(timeout=WAIT_S)
    assert (max_model_len, str(error)) == (256, "no room")
    loop.submit([request("long", "x" * 99)])
    assert reader.until_final("long").text == "x" * 99


def test_sizes_that_do_not_add_up_end_an_earlier_change_that_still_waits(loop: EngineLoop, reader: Reader) -> None:
    def contradiction() -> EngineSizes:
        raise LoadError("too few tokens")

    loop.submit([request("long", "x" * 99)])
    while not loop.status().num_running:
        time.sleep(0.001)
    replaced, done = Done(), Done()
    loop.resize(lambda: sizes(16), replaced)
    loop.resize(contradiction, done)
    max_model_len, error = done.ends.get(timeout=WAIT_S)
    assert (max_model_len, str(error)) == (256, "too few tokens")
    loop.submit([request("as long", "x" * 99)])
    assert reader.until_final("as long").text == "x" * 99
    assert replaced.ends.empty()


def test_an_engine_that_has_no_memory_left_ends() -> None:
    crashed: queue.Queue[BaseException] = queue.Queue()
    engine = make_engine()
    loop = EngineLoop(engine, lambda frame: None, crashed.put)
    loop.start()

    def no_memory() -> PagedKVCache:
        raise LoadError("no room")

    engine._sizes = EngineSizes(no_memory, engine.limits)
    loop.resize(lambda: EngineSizes(no_memory, sizes(16).limits), Done())
    assert isinstance(crashed.get(timeout=WAIT_S), DeviceLostError)
