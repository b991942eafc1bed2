"""What crosses the process border arrives as it left."""

from __future__ import annotations

import pickle
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_registry.contract import (
    AbortBatch,
    Candidate,
    ChatMessage,
    ChatPrompt,
    Command,
    Detokenize,
    Embed,
    Fault,
    FaultKind,
    FinishReason,
    Frame,
    Generate,
    GenerationRequest,
    InfillPrompt,
    ModelView,
    PoolView,
    ReplicaState,
    ReplicaView,
    RequestFaultError,
    SamplingParams,
    SequenceOutput,
    SequenceTiming,
    SubmitBatch,
    TextPrompt,
    TextSegment,
    Tokenize,
    Tokenized,
    TokenLogprobs,
    TokenPrompt,
    Usage,
    WorkerStatus,
    decode_command,
    decode_frame,
    encode_command,
    encode_frame,
)
from model_registry.loader import ZOO, load_entry

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
COUNT = st.integers(0, 2**53)
REAL = st.floats(allow_nan=False, allow_infinity=False)
TOKENS = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)


def several(items: st.SearchStrategy[Any], at_most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=at_most).map(tuple)


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.none() | COUNT,
    min_tokens=COUNT,
    temperature=REAL,
    top_p=REAL,
    top_k=st.none() | COUNT,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    num_logprobs=st.none() | COUNT,
    ignore_eos=st.booleans(),
    stop=several(TEXT),
    stop_token_ids=TOKENS,
    stop_token_sequences=several(TOKENS),
)
PROMPTS = st.one_of(
    st.builds(
        TextPrompt,
        several(st.builds(TextSegment, TEXT, st.booleans())),
        has_opening=st.booleans(),
        has_closing=st.booleans(),
    ),
    st.builds(InfillPrompt, TEXT, TEXT),
    st.builds(TokenPrompt, TOKENS),
    st.builds(ChatPrompt, several(st.builds(ChatMessage, TEXT, TEXT)), opens_answer=st.booleans()),
)
TASKS = st.one_of(
    st.builds(Generate), st.builds(Tokenize, st.booleans()), st.builds(Detokenize), st.builds(Embed, st.none() | COUNT)
)
REQUESTS = st.builds(GenerationRequest, request_id=TEXT, prompt=PROMPTS, sampling=SAMPLING, task=TASKS)
COMMANDS = st.one_of(
    st.builds(SubmitBatch, several(REQUESTS)),
    st.builds(AbortBatch, several(TEXT)),
)
USAGES = st.builds(Usage, prompt_tokens=COUNT, completion_tokens=COUNT, cached_tokens=COUNT)
TIMINGS = st.builds(SequenceTiming, queue_s=REAL, prefill_s=REAL, decode_s=REAL)
FAULTS = st.builds(Fault, kind=st.sampled_from(FaultKind), message=TEXT, param=st.none() | TEXT)
CANDIDATES = st.builds(
    Candidate, token_id=COUNT, text=st.binary(max_size=5), is_special=st.booleans(), logprob=st.floats(max_value=0)
)
LOGPROBS = several(st.builds(TokenLogprobs, CANDIDATES, several(CANDIDATES, at_most=2)), at_most=2)
PARTIAL = st.builds(SequenceOutput, request_id=st.just("r"), text=TEXT, token_ids=TOKENS, logprobs=LOGPROBS)
FINAL = st.builds(
    SequenceOutput,
    request_id=st.just("r"),
    text=TEXT,
    token_ids=TOKENS,
    logprobs=LOGPROBS,
    tokenized=st.none() | st.builds(Tokenized, TOKENS, st.none() | several(TEXT)),
    embedding=st.binary(max_size=8),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    stop=st.none() | TEXT,
    usage=st.none() | USAGES,
    timing=st.none() | TIMINGS,
    fault=st.none() | FAULTS,
)
FRAMES = st.builds(
    Frame,
    outputs=several(FINAL, at_most=3),
    status=st.builds(WorkerStatus, num_running=COUNT, num_waiting=COUNT, num_steps=COUNT, kv_cache_usage=REAL),
)


@given(COMMANDS)
def test_a_command_arrives_as_it_left(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


@given(FRAMES)
def test_a_frame_arrives_as_it_left(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


def test_what_arrives_has_its_own_types_again() -> None:
    frame = Frame(
        outputs=(
            SequenceOutput(
                request_id="r", finish_reason=FinishReason.STOP, fault=Fault(kind=FaultKind.WORKER_LOST, message="")
            ),
        ),
        status=WorkerStatus(),
    )
    (output,) = decode_frame(encode_frame(frame)).outputs
    assert output.finish_reason is FinishReason.STOP
    assert output.fault is not None
    assert output.fault.kind is FaultKind.WORKER_LOST
    assert isinstance(output.token_ids, tuple)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", encode_frame(Frame(status=WorkerStatus()))])
def test_bytes_that_are_no_command_are_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(data)


@pytest.mark.parametrize("data", [b"", b"\x01", encode_command(AbortBatch(request_ids=("r",)))])
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_frame(data)


def test_a_wrong_type_inside_a_command_is_refused() -> None:
    data = msgspec.msgpack.encode({"type": "abort", "request_ids": [1]})
    with pytest.raises(msgspec.ValidationError, match=re.escape("$.request_ids[0]")):
        decode_command(data)


@given(PARTIAL, FINAL)
def test_two_outputs_as_one_are_their_concatenation_with_the_later_ones_end(
    earlier: SequenceOutput, later: SequenceOutput
) -> None:
    both = earlier.followed_by(later)
    assert both.request_id == "r"
    assert both.text == earlier.text + later.text
    assert both.token_ids == earlier.token_ids + later.token_ids
    assert both.logprobs == earlier.logprobs + later.logprobs
    assert both.is_final == later.is_final
    assert (both.tokenized, both.embedding, both.finish_reason, both.stop, both.usage, both.timing, both.fault) == (
        later.tokenized,
        later.embedding,
        later.finish_reason,
        later.stop,
        later.usage,
        later.timing,
        later.fault,
    )


@given(PARTIAL, PARTIAL, FINAL)
def test_it_does_not_matter_which_outputs_are_joined_first(
    first: SequenceOutput, second: SequenceOutput, third: SequenceOutput
) -> None:
    assert first.followed_by(second).followed_by(third) == first.followed_by(second.followed_by(third))


def test_an_output_is_final_with_a_finish_reason_or_a_fault() -> None:
    assert not SequenceOutput(request_id="r", text="a").is_final
    assert SequenceOutput(request_id="r", finish_reason=FinishReason.LENGTH).is_final
    assert SequenceOutput(request_id="r", fault=Fault(kind=FaultKind.ENGINE_FAULT, message="m")).is_final


def test_a_request_fault_error_carries_what_the_client_will_see() -> None:
    error = RequestFaultError(FaultKind.CONTEXT_LENGTH_EXCEEDED, "too long", "messages")
    assert error.fault == Fault(kind=FaultKind.CONTEXT_LENGTH_EXCEEDED, message="too long", param="messages")
    assert str(error) == "too long"


def test_the_view_of_the_pool_survives_pickling() -> None:
    entry = load_entry(ZOO / "aviary--echo.yaml")
    replica = ReplicaView(replica_id="x", state=ReplicaState.READY, address="127.0.0.1:1")
    view = PoolView(version=1, secret="s", models=(ModelView(entry=entry, created=0, replicas=(replica,)),))
    assert pickle.loads(pickle.dumps(view)) == view
    assert view.models[0].model_id == "aviary/echo"
