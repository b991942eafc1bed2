"""What a lane tells clients it cannot take, and how it hands its queue to the links."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.channel import Channel
from gateway.errors import InvalidRequestError, QueueFullError
from gateway.model_lane import RATE_WINDOW_S, UNKNOWN_WAIT_S, ModelLane, unavailable_reason
from gateway.output_stream import OutputStream
from gateway.routing import Router, RoutingReason
from gateway.ticket import Submission, Ticket
from gateway.token_estimates import EXPECTED_TOKENS, prompt_tokens
from gateway.worker_link import WorkerLink
from model_registry.contract import (
    GENERATE,
    Embed,
    Frame,
    GenerationRequest,
    ModelView,
    ReplicaState,
    SamplingParams,
    TextPrompt,
    TextSegment,
    Tokenize,
)
from tests.support.scripted_pool import MODEL, entry, model_view, replica

PROMPT = TextPrompt((TextSegment("hi", trusted=True),))
SUBMISSION = Submission(
    model_id=MODEL,
    prompts=(PROMPT,),
    sampling=(SamplingParams(),),
    prompt_param="prompt",
    trace_id="req",
    received_at=0.0,
)


def sized(*, num_prompts: int = 1, num_choices: int = 1) -> Submission:
    return replace(SUBMISSION, prompts=(PROMPT,) * num_prompts, sampling=(SamplingParams(),) * num_choices)


def lane_of(view: ModelView) -> ModelLane:
    return ModelLane(view, Router(), on_routed=lambda reason: None)


def ticket_of(submission: Submission, name: str) -> Ticket:
    return Ticket(
        base=GenerationRequest(request_id=name, prompt=submission.prompts[0], sampling=submission.sampling[0]),
        index=0,
        submission=submission,
        stream=OutputStream(1, on_close=lambda: None),
        num_bytes=100,
        num_prompt_tokens=prompt_tokens(submission.prompts[0]),
        admitted_at=0.0,
    )


def lane_with(num_queued: int, finished_at: list[float]) -> ModelLane:
    lane = lane_of(model_view(replica("a")))
    for index in range(num_queued):
        lane.enqueue(ticket_of(SUBMISSION, str(index)))
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
    lane = lane_of(model_view(replica("a"), replica("b"), of=entry(ongoing=2, queued=1)))
    with pytest.raises(InvalidRequestError, match=r"Expected a value <= 5, .* but got 6 instead") as caught:
        lane.admit(sized(num_choices=6), 0.0)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "n", "integer_above_max_value")
    with pytest.raises(QueueFullError):
        lane.admit(sized(num_choices=5), 0.0)


# Handing out


class Unheard:
    """Listens to links that nothing happens to."""

    def link_up(self, link: WorkerLink) -> None: ...

    def link_down(self, link: WorkerLink, lost: Sequence[Ticket]) -> None: ...

    def link_frame(self, link: WorkerLink, frame: Frame) -> None: ...


def no_channel(address: str, secret: str) -> Channel:
    raise AssertionError("these links are never started")


def add_link(lane: ModelLane, name: str, *in_flight: Ticket) -> WorkerLink:
    link = lane.links[name] = WorkerLink(MODEL, name, name, "secret", no_channel, Unheard())
    link.is_connected = True
    link.in_flight = {ticket.request.request_id: ticket for ticket in in_flight}
    return link


def submission_of(text: str, *, session: str | None = None, max_tokens: int | None = None) -> Submission:
    return Submission(
        model_id=MODEL,
        prompts=(TextPrompt((TextSegment(text, trusted=True),)),),
        sampling=(SamplingParams(max_tokens=max_tokens),),
        prompt_param="prompt",
        trace_id="req",
        received_at=0.0,
        session=session,
    )


LINKS = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(0, 5), st.booleans()), max_size=8)
PROMPTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1_500), st.sampled_from((None, "s"))), max_size=30)


@given(LINKS, PROMPTS)
def test_the_queue_is_handed_out_once_in_order_and_within_the_room_of_every_link(
    links: dict[str, tuple[int, bool]], prompts: list[tuple[int, int, str | None]]
) -> None:
    reasons: list[RoutingReason] = []
    lane = ModelLane(model_view(of=entry(ongoing=5)), Router(draws=random.Random(1)), reasons.append)
    for name, (num_busy, is_usable) in links.items():
        busy = (ticket_of(SUBMISSION, f"{name}{number}") for number in range(num_busy))
        add_link(lane, name, *busy).is_full = not is_usable
    room = {name: 5 - num_busy if is_usable else 0 for name, (num_busy, is_usable) in links.items()}
    tickets = [
        ticket_of(submission_of(str(beginning) * length, session=session), str(number))
        for number, (beginning, length, session) in enumerate(prompts)
    ]
    for ticket in tickets:
        lane.enqueue(ticket)
    batches = list(lane.assign())
    handed_out = [ticket for _, batch in batches for ticket in batch]
    num_expected = min(len(tickets), sum(room.values()))
    assert sorted(map(tickets.index, handed_out)) == list(range(num_expected))
    assert lane.queued == tuple(tickets[num_expected:])
    assert len({link.replica_id for link, _ in batches}) == len(batches)
    for link, batch in batches:
        assert 0 < len(batch) <= room[link.replica_id]
        assert [tickets.index(ticket) for ticket in batch] == sorted(map(tickets.index, batch))
        assert {ticket.route.replica_id for ticket in batch if ticket.route} == {link.replica_id}
    assert Counter(reasons) == Counter(ticket.route.reason for ticket in handed_out if ticket.route)


def test_tokens_count_not_requests() -> None:
    lane = lane_of(model_view())
    add_link(lane, "a", *(ticket_of(submission_of("", max_tokens=10), str(number)) for number in range(3)))
    add_link(lane, "b", ticket_of(submission_of("", max_tokens=100), "4"))
    lane.enqueue(ticket_of(SUBMISSION, "5"))
    assert [link.replica_id for link, _ in lane.assign()] == ["a"]


def test_what_other_gateways_sent_counts_as_load() -> None:
    lane = lane_of(model_view())
    add_link(lane, "a").num_foreign = 2
    add_link(lane, "b", ticket_of(SUBMISSION, "0"))
    lane.enqueue(ticket_of(SUBMISSION, "1"))
    assert [link.replica_id for link, _ in lane.assign()] == ["b"]


def test_a_prompt_counts_until_the_first_output_and_text_until_it_is_generated() -> None:
    lane = lane_of(model_view())
    add_link(lane, "a")
    ticket = ticket_of(submission_of("x" * 100, max_tokens=100), "0")
    lane.enqueue(ticket)
    list(lane.assign())
    assert ticket.num_tokens_left == 100 // 4 + 100
    ticket.last_output_at = 1.0
    ticket.num_generated_tokens = 30
    assert ticket.num_tokens_left == 70
    assert ticket_of(SUBMISSION, "1").num_tokens_left == EXPECTED_TOKENS


def test_choices_of_a_long_prompt_stay_together() -> None:
    lane = lane_of(model_view())
    for name in "abc":
        add_link(lane, name)
    submission = submission_of("x" * 1_200, max_tokens=16)
    for number in range(4):
        lane.enqueue(ticket_of(submission, str(number)))
    assert [len(batch) for _, batch in lane.assign()] == [4]


def test_requests_that_are_handed_out_together_are_each_recognised_by_their_own_prompt() -> None:
    reasons: list[RoutingReason] = []
    lane = ModelLane(model_view(), Router(), reasons.append)
    for name in "ab":
        add_link(lane, name)
    for number, beginning in enumerate("xyx"):
        lane.enqueue(ticket_of(submission_of(beginning * 3_000, max_tokens=16), str(number)))
    list(lane.assign())
    assert reasons == [RoutingReason.LOAD, RoutingReason.LOAD, RoutingReason.PREFIX]


def test_what_leaves_no_prefix_in_a_cache_is_not_remembered() -> None:
    reasons: list[RoutingReason] = []
    lane = ModelLane(model_view(), Router(), reasons.append)
    for name in "ab":
        add_link(lane, name)
    submission = submission_of("x" * 3_000, max_tokens=16)
    for number, task in enumerate((Embed(), Tokenize(), GENERATE, GENERATE)):
        ticket = ticket_of(submission, str(number))
        ticket.base = msgspec.structs.replace(ticket.base, task=task)
        lane.enqueue(ticket)
        list(lane.assign())
    assert reasons == [RoutingReason.LOAD, RoutingReason.LOAD, RoutingReason.LOAD, RoutingReason.PREFIX]


def test_a_link_that_was_down_between_two_requests_is_not_believed_to_know_the_prefix() -> None:
    reasons: list[RoutingReason] = []
    lane = ModelLane(model_view(), Router(), reasons.append)
    add_link(lane, "b", ticket_of(SUBMISSION, "0"))
    link = add_link(lane, "a")
    for is_connected in (True, False, True):
        link.is_connected = is_connected
        if is_connected:
            lane.enqueue(ticket_of(submission_of("x" * 3_000), "1"))
        list(lane.assign())
    assert reasons == [RoutingReason.LOAD, RoutingReason.LOAD]


def test_a_session_is_not_shown_where_its_submission_is() -> None:
    assert "Ann" not in repr(submission_of("", session="Ann"))


def test_why_a_model_cannot_be_used_names_each_state_once() -> None:
    waits = "pending: needs {GPU: 2}; no node offers GPU"
    view = model_view(
        replica("a", ReplicaState.PENDING, waits),
        replica("b", ReplicaState.PENDING, waits),
        replica("c", ReplicaState.FAILED, "no such file"),
        replica("d", ReplicaState.STARTING),
    )
    assert unavailable_reason(view) == f"{waits}; failed: no such file; starting"


def test_more_prompts_than_the_model_can_ever_hold_are_refused_by_their_number() -> None:
    lane = lane_of(model_view(replica("a"), of=entry(ongoing=2, queued=1)))
    with pytest.raises(QueueFullError):
        lane.admit(sized(num_prompts=3), 0.0)
    with pytest.raises(InvalidRequestError, match="2 prompts make 4 sequences, more than the 3 ") as caught:
        lane.admit(sized(num_prompts=2, num_choices=2), 0.0)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "prompt", "array_above_max_length")
