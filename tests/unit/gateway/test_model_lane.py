"""What a lane tells clients it cannot take."""

from __future__ import annotations

import pytest

from gateway.errors import InvalidRequestError, QueueFullError
from gateway.model_lane import RATE_WINDOW_S, UNKNOWN_WAIT_S, ModelLane
from gateway.output_stream import OutputStream
from gateway.ticket import Submission, Ticket
from model_registry.contract import GenerationRequest, SamplingParams, TextPrompt, TextSegment
from tests.support.scripted_pool import MODEL, entry, model_view, replica

PROMPT = TextPrompt((TextSegment("hi", trusted=True),))
SUBMISSION = Submission(
    model_id=MODEL, prompt=PROMPT, sampling=(SamplingParams(),), prompt_param="prompt", trace_id="req", received_at=0.0
)


def lane_with(num_queued: int, finished_at: list[float]) -> ModelLane:
    lane = ModelLane(model_view(replica("a")))
    for index in range(num_queued):
        lane.enqueue(
            Ticket(
                base=GenerationRequest(request_id=str(index), prompt=PROMPT, sampling=SamplingParams()),
                index=0,
                submission=SUBMISSION,
                stream=OutputStream(1, on_close=lambda: None),
                num_bytes=100,
                admitted_at=0.0,
            )
        )
    for moment in finished_at:
        lane.note_finished(moment)
    return lane


STEADY = [number / 10 for number in range(10)]
"""Ten completions, 0.1 s apart."""


def test_the_wait_is_the_queues_length_times_the_time_between_completions() -> None:
    assert lane_with(5, STEADY)._wait_s(1.0) == pytest.approx(0.6)
    assert lane_with(0, STEADY)._wait_s(1.0) == pytest.approx(0.1)


def test_completions_of_long_ago_say_nothing() -> None:
    lane = lane_with(5, STEADY)
    assert lane._wait_s(1_000.0) == UNKNOWN_WAIT_S
    lane.note_finished(1_000.0)
    assert lane._wait_s(1_000.5) == pytest.approx(6 * 0.5)
    assert lane_with(5, [0.0, RATE_WINDOW_S])._wait_s(RATE_WINDOW_S + 1) == pytest.approx(6 * 1.0)


def test_without_any_completion_the_wait_is_a_guess() -> None:
    assert lane_with(5, [])._wait_s(1.0) == UNKNOWN_WAIT_S


def test_more_choices_than_the_model_can_ever_hold_are_refused_for_good() -> None:
    lane = ModelLane(model_view(replica("a"), replica("b"), of=entry(ongoing=2, queued=1)))
    with pytest.raises(InvalidRequestError, match=r"Expected a value <= 5, .* but got 6 instead") as caught:
        lane.admit(6, 0.0)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "n", "integer_above_max_value")
    with pytest.raises(QueueFullError):
        lane.admit(5, 0.0)
