"""One sequence on its way through the gateway: queued, sent to a worker, perhaps queued again, ended exactly once.

Plain state with one owner, the dispatcher; knows nothing of channels or HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from gateway.errors import ApiError, ContextLengthExceededError, from_fault
from gateway.output_stream import OutputStream
from gateway.routing import Route
from gateway.token_estimates import EXPECTED_TOKENS, prompt_tokens, tokens_left
from model_registry.contract import (
    GENERATE,
    Fault,
    Generate,
    GenerationRequest,
    Prompt,
    SamplingParams,
    SubmitBatch,
    Task,
    encode_command,
)

MAX_REQUEST_BYTES: Final = 32 * 1024 * 1024
"""A template may make a prompt much larger than the body it came in."""


class TicketState(StrEnum):
    QUEUED = "queued"
    SENT = "sent"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a client wants generated: of each prompt, one sequence for each of `sampling`; or what else, of each."""

    model_id: str
    prompts: tuple[Prompt, ...]
    sampling: tuple[SamplingParams, ...]
    prompt_param: str
    """Request field that held the prompts, named in errors about them."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Its fields by the names that workers have for them, where they differ."""
    trace_id: str
    """What its client and the logs know it by."""
    received_at: float
    """When its HTTP request came in, by `time.monotonic`."""
    task: Task = GENERATE
    session: str | None = field(default=None, repr=False)
    """What its client calls the session it belongs to."""
    is_background: bool = False
    """Nobody waits for it: it gets only what clients leave, and is set aside when they want that too."""

    def error_of(self, fault: Fault) -> ApiError:
        """What its client sees of a worker's fault."""
        return from_fault(fault, prompt_param=self.prompt_param, params=self.params)

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * len(self.sampling)


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """One sequence of a submission; those of a prompt have indexes that follow each other."""

    base: GenerationRequest
    index: int
    submission: Submission
    stream: OutputStream
    num_bytes: int
    """Size of its request on the channel."""
    num_prompt_tokens: int
    """As estimated: only a worker knows."""
    admitted_at: float
    state: TicketState = TicketState.QUEUED
    num_attempts: int = 0
    num_losses: int = 0
    """Workers that died under it."""
    lost_replicas: set[str] = field(default_factory=set)
    """The replicas they were."""
    route: Route | None = None
    """Where it was sent last, and why."""
    num_generated_tokens: int = 0
    sent_at: float = 0.0
    last_output_at: float | None = None
    request: GenerationRequest = field(init=False)
    """What the current attempt sends: every attempt has an id of its own, so outputs of an older one are not ours."""

    def __post_init__(self) -> None:
        self.request = self.base

    @property
    def is_background(self) -> bool:
        return self.submission.is_background

    @property
    def is_first_of_prompt(self) -> bool:
        return self.index % len(self.submission.sampling) == 0

    @property
    def generates(self) -> bool:
        """Whether its outputs are generated text."""
        return isinstance(self.base.task, Generate)

    @property
    def has_output(self) -> bool:
        return self.last_output_at is not None

    @property
    def num_tokens_left(self) -> int:
        """About what its worker still has to compute for it: its prompt until the first output, and its text."""
        num_prompt_tokens = 0 if self.has_output or self.route is None else self.route.num_prompt_tokens
        return num_prompt_tokens + tokens_left(self.base.sampling.max_tokens, self.num_generated_tokens)

    def note_loss(self, replica_id: str) -> None:
        """A worker died under it."""
        self.num_losses += 1
        self.lost_replicas.add(replica_id)

    @property
    def num_tokens(self) -> int:
        """About how many it has come to."""
        return self.num_prompt_tokens + self.num_generated_tokens

    @property
    def num_expected_tokens(self) -> int:
        """About how many it may come to."""
        limit = self.base.sampling.max_tokens
        return self.num_prompt_tokens + (EXPECTED_TOKENS if limit is None else limit)

    def mark_sent(self, now: float) -> None:
        self.state = TicketState.SENT
        self.num_attempts += 1
        self.sent_at = now
        self.request = msgspec.structs.replace(self.base, request_id=f"{self.base.request_id}-{self.num_attempts}")

    def mark_queued(self) -> None:
        self.state = TicketState.QUEUED

    def mark_ended(self) -> None:
        self.state = TicketState.ENDED


def tickets_of(submission: Submission, stream: OutputStream, now: float) -> list[Ticket]:
    """One for each of its sequences. Raises `ContextLengthExceededError` for a prompt that no channel carries."""
    name = uuid.uuid4().hex
    tickets: list[Ticket] = []
    for prompt in submission.prompts:
        first = len(tickets)
        requests = [
            GenerationRequest(request_id=f"{name}-{index}", prompt=prompt, sampling=sampling, task=submission.task)
            for index, sampling in enumerate(submission.sampling, start=first)
        ]
        num_bytes, num_prompt_tokens = _size_on_channel(requests[0], submission), prompt_tokens(prompt)
        tickets += [
            Ticket(
                base=request,
                index=index,
                submission=submission,
                stream=stream,
                num_bytes=num_bytes,
                num_prompt_tokens=num_prompt_tokens,
                admitted_at=now,
            )
            for index, request in enumerate(requests, start=first)
        ]
    return tickets


def _size_on_channel(request: GenerationRequest, submission: Submission) -> int:
    num_bytes = len(encode_command(SubmitBatch((request,))))
    if num_bytes > MAX_REQUEST_BYTES:
        raise ContextLengthExceededError(
            f"Your request takes {num_bytes} bytes once its messages are in the model's format, more than the limit of "
            f"{MAX_REQUEST_BYTES} bytes. Please shorten it.",
            param=submission.prompt_param,
        )
    return num_bytes
