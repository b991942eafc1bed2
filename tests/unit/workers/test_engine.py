"""The whole engine on the echo model: scheduling, limits, stops, preemption, faults, aborts."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import pytest

from model_registry.contract import (
    FaultKind,
    FinishReason,
    GenerationRequest,
    PromptEcho,
    RequestFaultError,
    SamplingParams,
    SequenceOutput,
    TextPrompt,
    TextSegment,
    TokenPrompt,
)
from workers.engine.echo import (
    BLOCK_SIZE,
    END_OF_SEQUENCE,
    OTHER_LOGPROB,
    PREDICTED_LOGPROB,
    ByteTokenizer,
    EchoRunner,
    EchoSampler,
)
from workers.engine.engine import Engine, EngineLimits, EngineSizes
from workers.engine.paged_kv_cache import PagedKVCache
from workers.engine.runner import StepPlan
from workers.engine.sampler import SampledToken
from workers.engine.sequence import Sequence
from workers.errors import DeviceLostError, LoadError
from workers.runners.grammar import GrammarCompiler

MakeEngine = Callable[..., Engine]


def make_engine(
    *,
    num_kv_blocks: int = 64,
    max_model_len: int = 256,
    max_batch_size: int = 8,
    max_batch_tokens: int = 64,
    max_input_tokens: int | None = None,
    max_logits_rows: int | None = None,
    runner: EchoRunner | None = None,
    sampler: EchoSampler | None = None,
) -> Engine:
    limits = EngineLimits(
        max_model_len=max_model_len,
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
        max_input_tokens=max_input_tokens,
        max_logits_rows=max_logits_rows,
    )
    return Engine(
        runner or EchoRunner(num_kv_blocks),
        sampler or EchoSampler(),
        ByteTokenizer(),
        GrammarCompiler(ByteTokenizer()),
        EngineSizes(lambda: PagedKVCache(num_kv_blocks, BLOCK_SIZE), limits),
    )


def request(request_id: str, text: str, **sampling: object) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt=TextPrompt((TextSegment(text, trusted=True),)),
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )


def submit(engine: Engine, request_id: str, text: str, **sampling: object) -> None:
    engine.submit(engine.prepare(request(request_id, text, **sampling)))


def drain(engine: Engine, max_steps: int = 5_000) -> dict[str, SequenceOutput]:
    """Step until idle; all outputs of each request as one."""
    outputs: dict[str, SequenceOutput] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            known = outputs.get(output.request_id)
            assert known is None or not known.is_final
            outputs[output.request_id] = known.followed_by(output) if known else output
    raise AssertionError("the engine did not come to rest")


def generate(text: str, **sampling: object) -> SequenceOutput:
    engine = make_engine()
    submit(engine, "only", text, **sampling)
    return drain(engine)["only"]


def test_a_prompt_of_more_tokens_than_the_registry_allows_is_refused() -> None:
    engine = make_engine(max_input_tokens=6)
    submit(engine, "fits", "hello")
    with pytest.raises(RequestFaultError, match=r"at most 6 tokens.* has 7 tokens") as raised:
        submit(engine, "long", "hello!")
    assert raised.value.fault.kind is FaultKind.CONTEXT_LENGTH_EXCEEDED
    assert drain(engine)["fits"].text == "hello"


def test_it_answers_until_the_model_ends() -> None:
    output = generate("hello world")
    assert (output.text, output.finish_reason) == ("hello world", FinishReason.STOP)
    assert output.usage is not None
    assert (output.usage.prompt_tokens, output.usage.completion_tokens) == (12, 12)


def test_max_tokens_ends_it_with_length() -> None:
    output = generate("hello world", max_tokens=4)
    assert (output.text, output.finish_reason, len(output.token_ids)) == ("hell", FinishReason.LENGTH, 4)


def test_min_tokens_keeps_it_going_past_the_models_end() -> None:
    output = generate("abc", min_tokens=5, max_tokens=20)
    assert output.text.startswith("abc ")
    assert len(output.token_ids) >= 6


def test_ignore_eos_goes_on_to_the_limit() -> None:
    output = generate("abc", ignore_eos=True, max_tokens=11)
    assert (output.text, output.finish_reason) == ("abcabcabc", FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"stop": ("o w",)}, "hell"),
        ({"stop": ("h",)}, ""),
        ({"stop": ("world", "lo wor")}, "hel"),
        ({"stop_token_ids": (ord("w"),)}, "hello "),
        ({"stop_token_sequences": (tuple(b"wor"),)}, "hello "),
        ({"stop": ("never",)}, "hello world"),
    ],
)
def test_stops_end_it_with_stop_and_are_not_shown(sampling: dict[str, object], text: str) -> None:
    output = generate("hello world", **sampling)
    assert (output.text, output.finish_reason) == (text, FinishReason.STOP)


def test_the_end_tells_which_string_stopped_it() -> None:
    assert generate("hello world", stop=("world", "lo wor")).stop == "lo wor"
    assert generate("hello world", stop=("never",)).stop is None
    assert generate("hello world", stop_token_ids=(ord("w"),)).stop is None


def test_text_held_back_for_a_stop_is_shown_at_the_limit() -> None:
    output = generate("abcdef", stop=("cdX",), max_tokens=4)
    assert (output.text, output.finish_reason) == ("abcd", FinishReason.LENGTH)


def test_a_stop_that_completes_with_the_last_allowed_token_is_a_stop() -> None:
    output = generate("abcdef", stop=("cd",), max_tokens=4)
    assert (output.text, output.finish_reason) == ("ab", FinishReason.STOP)


def test_a_prompt_too_long_for_the_context_is_refused_with_the_numbers() -> None:
    engine = make_engine(max_model_len=32)
    with pytest.raises(RequestFaultError, match=r"32 tokens.*41 in the prompt") as refused:
        engine.prepare(request("long", "x" * 40))
    assert refused.value.fault.kind is FaultKind.CONTEXT_LENGTH_EXCEEDED


def test_a_completion_that_cannot_fit_is_refused_rather_than_cut() -> None:
    engine = make_engine(max_model_len=32)
    with pytest.raises(RequestFaultError, match="50 for the completion"):
        engine.prepare(request("greedy", "x", max_tokens=50))


def test_without_max_tokens_the_context_is_the_limit() -> None:
    engine = make_engine(max_model_len=32)
    submit(engine, "all", "abc", ignore_eos=True)
    output = drain(engine)["all"]
    assert output.finish_reason is FinishReason.LENGTH
    assert len(output.token_ids) == 32 - 4


def test_a_default_limit_gives_way_to_the_room_there_is() -> None:
    engine = make_engine(max_model_len=32)
    submit(engine, "modest", "abc", max_tokens=50, max_tokens_is_default=True, ignore_eos=True)
    output = drain(engine)["modest"]
    assert (output.finish_reason, len(output.token_ids)) == (FinishReason.LENGTH, 32 - 4)


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"stop_token_sequences": ((1, 100_000),)}, "stop_token_ids"),
        ({"stop_token_ids": (1, 100_000)}, "stop_token_ids"),
        ({"logit_bias": {1: 1.0, 100_000: -1.0}}, "logit_bias"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused_by_value(sampling: dict[str, object], param: str) -> None:
    with pytest.raises(RequestFaultError, match=f"Invalid '{param}': token 100000 is outside") as refused:
        make_engine().prepare(request("bad", "x", **sampling))
    assert refused.value.fault.param == param


def test_token_prompts_are_checked_against_the_vocabulary() -> None:
    bad = GenerationRequest(request_id="bad", prompt=TokenPrompt((1, 2, 999)), sampling=SamplingParams())
    with pytest.raises(RequestFaultError, match="vocabulary"):
        make_engine().prepare(bad)


def test_an_id_that_is_running_is_refused() -> None:
    engine = make_engine()
    submit(engine, "twice", "abc")
    with pytest.raises(RequestFaultError, match="already running"):
        submit(engine, "twice", "abc")


def test_a_short_request_is_not_kept_waiting_by_long_ones() -> None:
    engine = make_engine()
    for number in range(7):
        submit(engine, f"long {number}", "x" * 40, ignore_eos=True, max_tokens=100)
    engine.step()
    submit(engine, "short", "abc", max_tokens=3)
    finished: list[str] = []
    while engine.has_work:
        finished += [output.request_id for output in engine.step() if output.is_final]
    assert finished[0] == "short"


def test_more_requests_than_the_batch_holds_wait_in_order() -> None:
    engine = make_engine(max_batch_size=2)
    for number in range(6):
        submit(engine, str(number), "abc")
    engine.step()
    assert (engine.status().num_running, engine.status().num_waiting) == (2, 4)
    assert list(drain(engine)) == ["0", "1", "2", "3", "4", "5"]


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    engine = make_engine(max_batch_tokens=16)
    submit(engine, "talking", "abcdefghij")
    engine.step()
    submit(engine, "long", "y" * 100)
    decoded = 0
    while engine.status().num_running < 2 or decoded < 5:
        decoded += sum(output.request_id == "talking" for output in engine.step())
    outputs = drain(engine)
    assert outputs["long"].text == "y" * 100


def test_preemption_loses_and_repeats_nothing() -> None:
    engine = make_engine(num_kv_blocks=6, max_model_len=96)
    texts = {str(number): f"text of sequence {number} " * 2 for number in range(4)}
    for request_id, text in texts.items():
        submit(engine, request_id, text)
    outputs = drain(engine)
    assert engine.status().num_preemptions > 0
    assert {request_id: output.text for request_id, output in outputs.items()} == texts
    assert engine.status().kv_cache_usage == 0


def test_a_newcomer_waits_when_those_who_run_will_need_the_last_blocks() -> None:
    """Admitted into the last free block, it would be preempted a few tokens later and prefilled again."""
    engine = make_engine(num_kv_blocks=2, max_model_len=32)
    submit(engine, "running", "x" * (BLOCK_SIZE - 6), ignore_eos=True, max_tokens=12)
    engine.step()
    submit(engine, "newcomer", "yyyyy", ignore_eos=True, max_tokens=10)
    outputs = drain(engine)
    assert outputs["newcomer"].text == "yyyyyyyyy"  # the end of sequence between two echoes has no text
    assert engine.status().num_preemptions == 0


def test_a_repeated_prompt_comes_from_the_prefix_cache() -> None:
    engine = make_engine()
    text = "a long enough system prompt that fills more than two blocks"
    submit(engine, "first", text)
    drain(engine)
    submit(engine, "second", text)
    output = drain(engine)["second"]
    assert output.text == text
    assert output.usage is not None
    assert output.usage.cached_tokens == 48


def test_an_aborted_sequence_emits_nothing_more_and_frees_its_blocks() -> None:
    engine = make_engine()
    submit(engine, "gone", "x" * 40, ignore_eos=True)
    submit(engine, "stays", "abc")
    engine.step()
    engine.abort("gone")
    engine.abort("never known")
    outputs = drain(engine)
    assert list(outputs) == ["stays"]
    assert engine.status().kv_cache_usage == 0


class PoisonedRunner(EchoRunner):
    """Fails whenever a marked prompt is in the step."""

    def run(self, plan: StepPlan) -> list[int]:
        if any(ord("!") in chunk.token_ids for chunk in plan.chunks):
            raise MemoryError("poisoned")
        return super().run(plan)


def test_a_request_that_breaks_the_model_ends_alone() -> None:
    engine = make_engine(runner=PoisonedRunner(64))
    submit(engine, "good 1", "abc")
    submit(engine, "bad", "!!!")
    submit(engine, "good 2", "def")
    outputs = drain(engine)
    assert (outputs["good 1"].text, outputs["good 2"].text) == ("abc", "def")
    fault = outputs["bad"].fault
    assert fault is not None
    assert fault.kind is FaultKind.ENGINE_FAULT
    assert "poisoned" not in fault.message
    assert engine.status().kv_cache_usage == 0


class LostDeviceRunner(EchoRunner):
    def run(self, plan: StepPlan) -> list[int]:
        raise DeviceLostError("CUDA error: device-side assert triggered")


def test_a_lost_device_ends_the_engine_and_is_blamed_on_no_request() -> None:
    engine = make_engine(runner=LostDeviceRunner(64))
    submit(engine, "innocent", "abc")
    with pytest.raises(DeviceLostError):
        engine.step()


class OneRowFails(EchoSampler):
    def sample(self, rows: list[int], sequences: Rows[Sequence], at: Rows[int]) -> list[SampledToken | Exception]:
        tokens = super().sample(rows, sequences, at)
        return [
            ArithmeticError("not finite") if sequence.request_id == "bad" else token
            for token, sequence in zip(tokens, sequences, strict=True)
        ]


def test_a_row_that_cannot_be_sampled_ends_its_own_request_only() -> None:
    engine = make_engine(sampler=OneRowFails())
    submit(engine, "bad", "abc")
    submit(engine, "good", "def")
    outputs = drain(engine)
    assert outputs["bad"].fault is not None
    assert outputs["good"].text == "def"


def test_every_generated_token_comes_with_its_logprob_and_bytes_also_those_no_text_shows() -> None:
    output = generate("é.", stop=("X",), num_logprobs=0)
    assert output.text == "é."
    assert tuple(token.chosen.token_id for token in output.logprobs) == output.token_ids
    assert b"".join(token.chosen.text for token in output.logprobs[:-1]) == "é.".encode()
    end = output.logprobs[-1].chosen
    assert (end.token_id, end.text, end.is_special) == (END_OF_SEQUENCE, b"<end of sequence>", True)
    assert all(token.chosen.logprob == PREDICTED_LOGPROB and not token.top for token in output.logprobs)


def test_as_many_likeliest_tokens_come_along_as_are_wanted() -> None:
    (first, second) = generate("xy", max_tokens=2, num_logprobs=3).logprobs
    assert [(one.token_id, one.text) for one in first.top] == [(ord("x"), b"x"), (0, b"\0"), (1, b"\1")]
    assert [one.logprob for one in second.top] == [PREDICTED_LOGPROB, OTHER_LOGPROB, OTHER_LOGPROB]


def test_a_logprob_is_the_models_own_whatever_sampling_makes_of_it() -> None:
    """The end is predicted, and banned."""
    (_, banned) = generate("x", min_tokens=2, max_tokens=2, num_logprobs=1).logprobs
    assert (banned.chosen.text, banned.chosen.logprob) == (b" ", OTHER_LOGPROB)
    assert [one.token_id for one in banned.top] == [END_OF_SEQUENCE]


def test_logprobs_come_only_to_those_who_want_them() -> None:
    engine = make_engine()
    submit(engine, "curious", "abc", num_logprobs=1)
    submit(engine, "not", "abc")
    outputs = drain(engine)
    assert (len(outputs["curious"].logprobs), outputs["not"].logprobs) == (4, ())


def test_draws_depend_on_seed_and_position_alone() -> None:
    engine = make_engine()
    first = engine.prepare(request("a", "one prompt", seed=7))
    second = engine.prepare(request("b", "another", seed=7))
    other = engine.prepare(request("c", "one prompt", seed=8))
    assert first.draw() == first.draw() == second.draw() != other.draw()
    before = first.draw()
    first.append(1)
    assert first.draw() != before
    assert 0 <= min(first.draw(), other.draw()) <= max(first.draw(), other.draw()) < 1


def test_random_load_with_aborts_answers_everything_exactly_once() -> None:
    generator = random.Random(1)
    engine = make_engine(num_kv_blocks=16, max_batch_size=5, max_batch_tokens=24, max_model_len=200)
    expected: dict[str, str] = {}
    finished: dict[str, str] = {}
    partial: dict[str, str] = {}
    for step in range(3_000):
        if generator.random() < 0.2 and step < 2_000:
            text = "".join(generator.choices("abc", k=generator.randrange(1, 90)))
            submit(engine, str(step), text)
            expected[str(step)] = text
        if generator.random() < 0.02 and expected.keys() - finished.keys():
            victim = generator.choice(sorted(expected.keys() - finished.keys()))
            engine.abort(victim)
            del expected[victim]
        for output in engine.step():
            assert output.request_id in expected
            assert output.request_id not in finished
            partial[output.request_id] = partial.get(output.request_id, "") + output.text
            if output.is_final:
                finished[output.request_id] = partial[output.request_id]
    drain(engine)
    assert len(finished) > 100
    assert all(expected[request_id] == text for request_id, text in finished.items())
    assert engine.status().kv_cache_usage == 0


@pytest.mark.parametrize("seed", range(20))
def test_other_sizes_between_two_steps_change_no_answer(seed: int) -> None:
    """Batch, steps and KV memory grow and shrink at random while requests run and wait."""
    choose = random.Random(seed)
    runner = EchoRunner(64)
    engine = make_engine(runner=runner, max_batch_size=choose.randint(1, 8))
    texts = {str(number): "".join(choose.choices("abc ü", k=choose.randint(1, 60))) for number in range(12)}
    outputs: dict[str, SequenceOutput] = {}
    unsubmitted = list(texts)
    while unsubmitted or engine.has_work:
        if unsubmitted and choose.random() < 0.3:
            request_id = unsubmitted.pop()
            submit(engine, request_id, texts[request_id])
        if choose.random() < 0.2:
            resize(engine, runner, num_kv_blocks=choose.randint(16, 64), max_batch_size=choose.randint(1, 8))
        for output in engine.step():
            known = outputs.get(output.request_id)
            outputs[output.request_id] = known.followed_by(output) if known else output
    assert {request_id: output.text for request_id, output in outputs.items()} == texts
    assert {output.finish_reason for output in outputs.values()} == {FinishReason.STOP}
    assert engine.status().kv_cache_usage == 0


def resize(
    engine: Engine, runner: EchoRunner, *, num_kv_blocks: int = 64, max_model_len: int = 256, max_batch_size: int = 8
) -> None:
    def new_kv_cache() -> PagedKVCache:
        runner.resize(num_kv_blocks)
        return PagedKVCache(num_kv_blocks, BLOCK_SIZE)

    limits = EngineLimits(max_model_len=max_model_len, max_batch_size=max_batch_size, max_batch_tokens=32)
    engine.resize(EngineSizes(new_kv_cache, limits))


def test_a_larger_batch_runs_in_the_next_step_and_a_smaller_one_puts_sequences_off() -> None:
    runner = EchoRunner(64)
    engine = make_engine(runner=runner, max_batch_size=1)
    for number in range(6):
        submit(engine, str(number), "abcabc")
    engine.step()
    resize(engine, runner, max_batch_size=4)
    engine.step()
    assert (engine.status().num_running, engine.status().num_waiting) == (4, 2)
    resize(engine, runner, max_batch_size=2)
    engine.step()
    assert (engine.status().num_running, engine.status().num_waiting) == (2, 4)
    drain(engine)


def test_a_shorter_context_waits_for_those_that_were_promised_more_but_holds_at_once_for_new_ones() -> None:
    runner = EchoRunner(64)
    engine = make_engine(runner=runner)
    submit(engine, "long", "x" * 99, max_tokens=100)
    shorter = EngineLimits(max_model_len=64, max_batch_size=8, max_batch_tokens=64)
    prepared = engine.prepare(request("prepared", "y" * 80, max_tokens=10))
    engine.expect(shorter)
    with pytest.raises(RequestFaultError, match="maximum context length is 64 tokens"):
        engine.prepare(request("new", "y" * 80))
    with pytest.raises(RequestFaultError, match="maximum context length is 64 tokens"):
        engine.submit(prepared)
    submit(engine, "short", "z" * 10)
    assert not engine.fits(shorter)
    assert drain(engine)["long"].text == "x" * 99
    assert engine.fits(shorter)
    resize(engine, runner, max_model_len=64, num_kv_blocks=4)
    submit(engine, "fits", "z" * 30)
    assert drain(engine)["fits"].text == "z" * 30
    resize(engine, runner, max_model_len=256)
    submit(engine, "long again", "x" * 99, max_tokens=100)
    assert drain(engine)["long again"].text == "x" * 99


def test_a_default_length_fills_the_context_of_the_day_it_is_submitted() -> None:
    runner = EchoRunner(64)
    engine = make_engine(runner=runner, max_model_len=64)
    sequence = engine.prepare(request("default", "ab", ignore_eos=True))
    resize(engine, runner, max_model_len=128)
    engine.submit(sequence)
    assert len(drain(engine)["default"].token_ids) == 128 - len("ab ")


def test_sizes_that_cannot_be_had_leave_the_engine_as_it_was() -> None:
    engine = make_engine()
    submit(engine, "runs", "hello world")
    engine.step()
    limits = EngineLimits(max_model_len=32, max_batch_size=1, max_batch_tokens=64)
    engine.expect(limits)

    def no_memory() -> PagedKVCache:
        raise MemoryError("out of memory\nand more")

    with pytest.raises(LoadError, match=r"^out of memory$"):
        engine.resize(EngineSizes(no_memory, limits))
    assert engine.limits.max_model_len == 256
    submit(engine, "long", "x" * 99)
    assert {output.text for output in drain(engine).values()} == {"ello world", "x" * 99}


def test_a_device_that_is_lost_meanwhile_ends_the_engine() -> None:
    engine = make_engine()

    def lost() -> PagedKVCache:
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        engine.resize(EngineSizes(lost, engine.limits))


def test_without_the_new_memory_and_the_old_one_nothing_can_go_on() -> None:
    tries: list[str] = []

    def refused() -> PagedKVCache:
        tries.append("no room")
        if len(tries) > 1:
            raise LoadError("no room")
        return PagedKVCache(64, BLOCK_SIZE)

    limits = EngineLimits(max_model_len=64, max_batch_size=1, max_batch_tokens=64)
    constraints = GrammarCompiler(ByteTokenizer())
    engine = Engine(EchoRunner(64), EchoSampler(), ByteTokenizer(), constraints, EngineSizes(refused, limits))
    with pytest.raises(DeviceLostError, match="no room"):
        engine.resize(EngineSizes(refused, limits))


def prompt_tokens(output: SequenceOutput) -> str:
    assert output.prompt is not None
    return b"".join(token.chosen.text for token in output.prompt.logprobs if not token.chosen.is_special).decode()


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_batch_tokens": 5},
        {"max_logits_rows": 8},
        {"max_logits_rows": 3, "max_batch_size": 2},
        {"num_kv_blocks": 7, "max_model_len": 100},
    ],
)
def test_an_echo_tells_how_likely_each_token_of_the_prompt_was_however_it_is_computed(limits: dict[str, Any]) -> None:
    """Also in steps of few tokens or few logits rows, after preemption, and of a prefix whose KV is there already."""
    engine = make_engine(**limits)
    texts = [f"a prompt of some length, number {number}" for number in range(4)]
    for _ in range(2):
        for number, text in enumerate(texts):
            submit(engine, f"{number}", text, echo=True, num_prompt_logprobs=1, num_logprobs=0)
            submit(engine, f"{number} plain", text)
        outputs = drain(engine)
        for number, text in enumerate(texts):
            echo = outputs[f"{number}"]
            assert echo.prompt is not None
            assert (echo.prompt.text, prompt_tokens(echo), echo.text) == (text, text, text)
            assert outputs[f"{number} plain"].text == text
            first, *others, last = echo.prompt.logprobs
            assert (first.chosen.logprob, first.top) == (0.0, ())
            # The echo model expects nothing but the end of its prompt, wherever in it.
            assert {token.chosen.logprob for token in others} == {OTHER_LOGPROB}
            assert last.chosen.logprob == PREDICTED_LOGPROB


def test_no_step_has_more_logits_rows_than_it_may() -> None:
    rows: list[int] = []

    class Counting(EchoRunner):
        def run(self, plan: StepPlan) -> list[int]:
            rows.append(sum(chunk.num_logits for chunk in plan.chunks))
            return super().run(plan)

    engine = make_engine(runner=Counting(64), max_logits_rows=6, max_batch_size=4)
    for number in range(6):
        submit(engine, str(number), "a longer prompt", echo=True, num_prompt_logprobs=(0, None)[number % 2])
    assert {output.text for output in drain(engine).values()} == {"a longer prompt"}
    assert max(rows) == 6


def test_an_echo_without_logprobs_is_the_text_alone() -> None:
    output = generate("hello", echo=True, max_tokens=2)
    assert output.prompt == PromptEcho(text="hello")
    assert output.text == "he"


def test_an_echo_of_token_ids_is_what_they_say() -> None:
    engine = make_engine()
    sampling = SamplingParams(echo=True)
    engine.submit(
        engine.prepare(GenerationRequest(request_id="r", prompt=TokenPrompt(tuple(b"hi")), sampling=sampling))
    )
    assert drain(engine)["r"].prompt == PromptEcho(text="hi")


def test_no_tokens_at_all_is_an_echo_and_an_end() -> None:
    output = generate("hello", echo=True, num_prompt_logprobs=0, max_tokens=0)
    assert (output.text, output.token_ids, output.finish_reason) == ("", (), FinishReason.LENGTH)
    assert prompt_tokens(output) == "hello"
    assert output.usage is not None
    assert (output.usage.prompt_tokens, output.usage.completion_tokens) == (6, 0)


def test_a_prompt_as_long_as_the_context_can_still_be_echoed() -> None:
    engine = make_engine(max_model_len=6)
    submit(engine, "r", "hello", echo=True, max_tokens=0)
    assert drain(engine)["r"].prompt == PromptEcho(text="hello")
