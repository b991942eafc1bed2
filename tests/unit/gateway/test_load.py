"""A gateway remembers its load over the look-back period, and no longer."""

from __future__ import annotations

import pytest

from gateway.load import Load, LoadHistory, sampling_interval_s
from gateway.output_stream import OutputStream
from gateway.ticket import Submission, Ticket
from gateway.token_estimates import EXPECTED_TOKENS, prompt_tokens
from model_registry.contract import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TextSegment,
    TokenPrompt,
)
from model_registry.schema import AutoscalingConfig


def test_a_report_holds_the_samples_of_the_look_back_period_and_the_present() -> None:
    history = LoadHistory("gateway", "a/b")
    for at in (0.0, 10.0, 20.0, 30.0):
        history.record(at, Load(queued=int(at), running={"r": 1}), 20.0)
    report = history.report(31.0, Load(queued=5, running={"r": 2}), 20.0)
    assert (report.gateway_id, report.model_id, report.at) == ("gateway", "a/b", 31.0)
    assert list(report.queued) == [(20.0, 20), (30.0, 30), (31.0, 5)]
    assert report.running == {"r": ((20.0, 1), (30.0, 1), (31.0, 2))}


def test_a_longer_look_back_period_reports_more() -> None:
    history = LoadHistory("gateway", "a/b")
    for at in range(100):
        history.record(float(at), Load(), 60.0)
    assert len(history.report(100.0, Load(), 60.0).queued) == 60


def test_a_replica_that_is_not_used_any_more_is_left_out() -> None:
    history = LoadHistory("gateway", "a/b")
    history.record(0.0, Load(running={"r": 1, "s": 2}), 20.0)
    assert history.report(1.0, Load(running={"s": 2, "t": 0}), 20.0).running == {
        "s": ((0.0, 2), (1.0, 2)),
        "t": ((1.0, 0),),
    }


@pytest.mark.parametrize(("look_back_s", "interval_s", "expected"), [(30, 10, 6), (100, 10, 10), (5, 10, 1)])
def test_the_load_is_looked_at_five_times_per_look_back_period_and_at_each_report(
    look_back_s: float, interval_s: float, expected: float
) -> None:
    config = AutoscalingConfig(look_back_period_s=look_back_s, metrics_interval_s=interval_s)
    assert sampling_interval_s(config) == expected


def test_tokens_and_kv_caches_are_reported_beside_requests() -> None:
    history = LoadHistory("gateway", "a/b")
    history.record(0.0, Load(queued_tokens=7, running_tokens={"r": 50}, kv_cache_usage={"r": 0.5, "s": 0.1}), 20.0)
    report = history.report(1.0, Load(running_tokens={"r": 60}, kv_cache_usage={"r": 0.75}), 20.0)
    assert list(report.queued_tokens) == [(0.0, 7), (1.0, 0)]
    assert report.running_tokens == {"r": ((0.0, 50), (1.0, 60))}
    assert report.kv_cache_usage == {"r": ((0.0, 0.5), (1.0, 0.75))}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (TokenPrompt((5, 6, 7)), 3),
        (TextPrompt((TextSegment("x" * 40, trusted=True), TextSegment("ü" * 3, trusted=False))), 12),
        (ChatPrompt((ChatMessage("user", "x" * 36),)), 10),
        (TextPrompt((TextSegment("", trusted=True),)), 1),
        (TextPrompt((TextSegment("\ud800", trusted=False),)), 1),
    ],
)
def test_a_token_is_thought_to_have_four_bytes(prompt: Prompt, expected: int) -> None:
    assert prompt_tokens(prompt) == expected


@pytest.mark.parametrize(("max_tokens", "answer"), [(40, 40), (4_000, 4_000), (None, EXPECTED_TOKENS)])
def test_a_request_that_waits_may_come_to_its_limit_and_one_that_runs_has_come_to_what_it_has(
    max_tokens: int | None, answer: int
) -> None:
    sampling, prompt = SamplingParams(max_tokens=max_tokens), TokenPrompt((5, 6, 7))
    submission = Submission(
        model_id="a/b", prompts=(prompt,), sampling=(sampling,), prompt_param="prompt", trace_id="req", received_at=0.0
    )
    ticket = Ticket(
        base=GenerationRequest(request_id="x", prompt=prompt, sampling=sampling),
        index=0,
        submission=submission,
        stream=OutputStream(1, on_close=lambda: None),
        num_bytes=100,
        num_prompt_tokens=3,
        admitted_at=0.0,
    )
    ticket.num_generated_tokens = 5
    assert (ticket.num_expected_tokens, ticket.num_tokens) == (3 + answer, 3 + 5)
