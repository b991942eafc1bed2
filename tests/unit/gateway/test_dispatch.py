"""The dispatcher against scripted workers: batches, bounds, retries, ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway import dispatch, outages, ticket, worker_link
from gateway.channel import ChannelClosedError
from gateway.dispatch import Dispatcher
from gateway.errors import (
    ApiError,
    ContextLengthExceededError,
    DeadlineError,
    DrainingError,
    ModelNotFoundError,
    ModelUnavailableError,
    QueueFullError,
    ServerError,
    SetAsideError,
    WorkerLostError,
)
from gateway.load import Load
from gateway.metrics import Metrics
from gateway.model_lane import UNKNOWN_WAIT_S
from gateway.output_stream import OutputStream
from gateway.ticket import Submission
from gateway.token_estimates import BYTES_PER_TOKEN, EXPECTED_TOKENS
from model_registry.contract import (
    FaultKind,
    Frame,
    GenerationRequest,
    ModelView,
    ReplicaState,
    ReplicaView,
    SamplingParams,
    TextPrompt,
    TextSegment,
    WorkerStatus,
)
from model_registry.schema import RegistryEntry
from tests.support.scripted_pool import (
    MODEL,
    ScriptedWorker,
    connect_to,
    end_of,
    entry,
    fault_of,
    model_view,
    piece_of,
    pool_view,
    replica,
)

PROMPT = TextPrompt((TextSegment("hi", trusted=True),))


async def settle() -> None:
    """Lets everything that is ready to run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def dispatching(
    workers: dict[str, ScriptedWorker], *, of: RegistryEntry | None = None, timeout_s: float = 30.0, shown: str = "abc"
) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(connect_to(workers), Metrics(CollectorRegistry()), request_timeout_s=timeout_s)
    dispatcher.update(pool_view(model_view(*(replica(name) for name in workers if name in shown), of=of)))
    await settle()
    try:
        yield dispatcher
    finally:
        await dispatcher.close()


def submit(
    dispatcher: Dispatcher,
    *,
    choices: int = 1,
    model_id: str = MODEL,
    prompt: TextPrompt = PROMPT,
    is_background: bool = False,
) -> OutputStream:
    return dispatcher.submit(
        Submission(
            model_id=model_id,
            prompts=(prompt,),
            sampling=tuple(SamplingParams(seed=index) for index in range(choices)),
            prompt_param="prompt",
            trace_id="req_known",
            received_at=time.monotonic(),
            is_background=is_background,
        )
    )


def load_of(dispatcher: Dispatcher) -> Load:
    (load,) = (load for model, load in dispatcher.loads if model.model_id == MODEL)
    return load


async def text_of(stream: OutputStream) -> str:
    return "".join([output.text async for _, output in stream])


async def error_of(stream: OutputStream) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await text_of(stream)
    return caught.value


def series(dispatcher: Dispatcher, name: str, **labels: str) -> float | None:
    return dispatcher._metrics.scrape().get_sample_value(f"aviary_{name}", {"model": MODEL} | labels)


async def test_a_request_gets_the_outputs_of_its_own_id() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        first, second = submit(dispatcher), submit(dispatcher)
        await settle()
        one, two = worker.requests
        worker.emit(piece_of(two, "two"), piece_of(one, "one"), end_of(one), end_of(two))
        assert (await text_of(first), await text_of(second)) == ("one", "two")


async def test_what_arrives_in_one_tick_leaves_as_one_batch() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        streams = [submit(dispatcher) for _ in range(3)]
        await settle()
        assert [len(batch) for batch in worker.batches] == [3]
        assert len({request.request_id for request in worker.requests}) == len(streams)


async def test_choices_are_sequences_of_their_own_with_their_own_parameters() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        submit(dispatcher, choices=3)
        await settle()
        assert [request.sampling.seed for request in worker.requests] == [0, 1, 2]


async def test_the_least_loaded_worker_gets_the_next_request() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        for _ in range(6):
            submit(dispatcher)
            await settle()
        assert (len(a.requests), len(b.requests)) == (3, 3)


async def test_what_a_worker_says_about_itself_counts_until_it_says_otherwise() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        a.emit(status=WorkerStatus(num_running=3, num_waiting=2))
        await settle()
        for _ in range(4):
            submit(dispatcher)
        await settle()
        assert (len(a.requests), len(b.requests)) == (0, 4)
        a.emit(status=WorkerStatus(kv_cache_usage=0.5))
        b.emit(end_of(b.requests[0]), status=WorkerStatus(num_running=3))  # the other three of ours
        await settle()
        links = dispatcher._lanes[MODEL].links
        assert [(links[name].num_foreign, links[name].kv_cache_usage) for name in "ab"] == [(0, 0.5), (0, 0.0)]
        submit(dispatcher)
        await settle()
        assert (len(a.requests), len(b.requests)) == (1, 4)


async def test_what_is_generated_is_no_longer_left_to_do() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        submit(dispatcher)
        await settle()
        for _ in range(3):
            worker.emit(piece_of(worker.requests[0], "x"))
        await settle()
        link = dispatcher._lanes[MODEL].links["a"]
        [ticket] = link.in_flight.values()
        assert ticket.num_generated_tokens == 3


async def test_a_links_tokens_are_those_of_what_it_has_whatever_happens_to_it() -> None:
    worker = ScriptedWorker()
    long = TextPrompt((TextSegment("x" * 3_000, trusted=True),))
    async with dispatching({"a": worker}, of=entry(ongoing=2)) as dispatcher:
        link = dispatcher._lanes[MODEL].links["a"]
        seen = [link.num_tokens_left]
        stream = submit(dispatcher, prompt=long)
        await settle()
        seen.append(link.num_tokens_left)
        worker.emit(piece_of(worker.requests[0], "x"))
        await settle()
        seen.append(link.num_tokens_left)
        stream.close()
        seen.append(link.num_tokens_left)
        submit(dispatcher)
        await settle()
        seen.append(link.num_tokens_left)
        worker.die()
        await settle()
        seen.append(link.num_tokens_left)
        assert seen[1] == 3_000 // BYTES_PER_TOKEN + EXPECTED_TOKENS
        assert EXPECTED_TOKENS < seen[4] < 2 * EXPECTED_TOKENS
        assert [seen[index] for index in (0, 2, 3, 5)] == [0, EXPECTED_TOKENS, 0, 0]


async def test_a_request_does_not_go_back_to_the_replica_that_was_lost_under_it() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        link = dispatcher._lanes[MODEL].links["b"]
        link.is_full = True
        submit(dispatcher)
        await settle()
        a.die()
        await settle()
        a.is_dead = False
        # By the time that a is back, b has room too, but more to do.
        link.is_full, link.num_foreign = False, 5
        await asyncio.wait_for(b.has_work.wait(), 5)
        assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_decisions_are_counted_by_their_reason() -> None:
    workers = {"a": ScriptedWorker(), "b": ScriptedWorker()}
    async with dispatching(workers) as dispatcher:
        for _ in range(2):
            submit(dispatcher, prompt=TextPrompt((TextSegment("x" * 3_000, trusted=True),)))
            await settle()
        assert series(dispatcher, "routing_decisions_total", reason="load") == 1
        assert series(dispatcher, "routing_decisions_total", reason="prefix") == 1


async def test_no_worker_gets_more_than_its_limit_and_the_next_goes_when_one_ends() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=2)) as dispatcher:
        for _ in range(3):
            submit(dispatcher)
        await settle()
        assert len(worker.requests) == 2
        worker.emit(end_of(worker.requests[0]))
        await settle()
        assert len(worker.requests) == 3


async def test_the_load_is_what_waits_and_what_each_worker_has() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker, "b": ScriptedWorker()}, of=entry(ongoing=1), shown="a") as dispatcher:
        assert load_of(dispatcher) == Load(running={"a": 0}, running_tokens={"a": 0}, kv_cache_usage={"a": 0.0})
        for _ in range(3):
            submit(dispatcher)
        await settle()
        worker.kv_cache_usage = 0.25
        worker.emit(piece_of(worker.requests[0], "x"), piece_of(worker.requests[0], "y"))
        await settle()
        assert load_of(dispatcher) == Load(
            queued=2,
            running={"a": 1},
            queued_tokens=2 * (1 + EXPECTED_TOKENS),
            running_tokens={"a": 1 + 2},
            kv_cache_usage={"a": 0.25},
        )


async def test_a_worker_that_cannot_be_reached_says_nothing_of_its_kv_cache() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        worker.die()
        await settle()
        assert load_of(dispatcher) == Load(running={"a": 0}, running_tokens={"a": 0})


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=1, queued=1)) as dispatcher:
        submit(dispatcher)
        submit(dispatcher)
        with pytest.raises(QueueFullError) as caught:
            submit(dispatcher)
        assert caught.value.retry_after_s == UNKNOWN_WAIT_S
        assert series(dispatcher, "requests_queued") == 2


async def test_choices_are_admitted_all_or_none() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=2, queued=1)) as dispatcher:
        submit(dispatcher)
        await settle()
        with pytest.raises(QueueFullError):
            submit(dispatcher, choices=3)
        await settle()
        assert len(worker.requests) == 1
        submit(dispatcher, choices=2)


async def test_unknown_models_and_models_without_replicas_are_refused_with_the_reason() -> None:
    async with dispatching({}) as dispatcher:
        with pytest.raises(ModelNotFoundError):
            submit(dispatcher, model_id="no/such")
        view = model_view(replica("a", ReplicaState.PENDING, "needs {GPU: 1}"))
        dispatcher.update(pool_view(view, version=2))
        with pytest.raises(ModelUnavailableError, match=r"pending: needs \{GPU: 1\}"):
            submit(dispatcher)


async def test_a_worker_that_is_full_is_asked_again_later_or_another_is() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        full, other = (a, b) if a.requests else (b, a)
        full.emit(fault_of(full.requests[0], FaultKind.WORKER_FULL))
        await settle()
        other.emit(end_of(other.requests[0], text="ok"))
        assert await text_of(stream) == "ok"


async def test_the_only_worker_being_full_is_waited_for() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        worker.emit(fault_of(worker.requests[0], FaultKind.WORKER_FULL))
        await settle()
        assert len(worker.requests) == 1
        worker.emit()
        await settle()
        worker.emit(end_of(worker.requests[1], text="ok"))
        assert await text_of(stream) == "ok"


async def test_a_draining_worker_gets_nothing_more() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        submit(dispatcher)
        await settle()
        draining, other = (a, b) if a.requests else (b, a)
        draining.emit(fault_of(draining.requests[0], FaultKind.WORKER_DRAINING))
        await settle()
        dispatcher.update(pool_view(model_view(replica("a"), replica("b")), version=2))
        submit(dispatcher)
        await settle()
        assert (len(draining.requests), len(other.requests)) == (1, 2)


async def test_a_request_moves_when_its_worker_dies_before_the_first_output() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        dying, other = (a, b) if a.requests else (b, a)
        dying.die()
        await settle()
        assert other.requests[0].request_id != dying.requests[0].request_id
        other.emit(end_of(other.requests[0], text="ok"))
        assert await text_of(stream) == "ok"


async def test_a_request_that_has_output_is_never_replayed() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        dying, other = (a, b) if a.requests else (b, a)
        dying.emit(piece_of(dying.requests[0], "once"))
        await settle()
        dying.die()
        assert (await anext(stream))[1].text == "once"
        assert isinstance(await error_of(stream), WorkerLostError)
        assert other.requests == []


async def test_a_request_under_which_two_workers_died_is_refused() -> None:
    workers = {name: ScriptedWorker() for name in "abc"}
    async with dispatching(workers) as dispatcher:
        stream = submit(dispatcher)
        for _ in range(3):
            await settle()
            for worker in workers.values():
                if worker.requests and not worker.is_dead:
                    worker.die()
        assert isinstance(await error_of(stream), WorkerLostError)
        assert sum(worker.is_dead for worker in workers.values()) == dispatch.MAX_WORKER_LOSSES


async def test_requests_of_a_dead_worker_keep_their_turn() -> None:
    dying, fresh = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": dying, "b": fresh}, of=entry(ongoing=2), shown="a") as dispatcher:
        for _ in range(3):
            submit(dispatcher)
        await settle()
        dying.die()
        await settle()
        dispatcher.update(pool_view(model_view(replica("a"), replica("b"), of=entry(ongoing=2))))
        await settle()
        assert [_name(request) for request in fresh.requests] == [_name(request) for request in dying.requests]
        fresh.emit(end_of(fresh.requests[0]))
        await settle()
        assert len(fresh.requests) == 3


def _name(request: GenerationRequest) -> str:
    """What stays the same from attempt to attempt."""
    return request.request_id.rpartition("-")[0]


async def test_without_any_replica_left_the_queue_is_told_why() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=1)) as dispatcher:
        running, queued = submit(dispatcher), submit(dispatcher)
        await settle()
        dispatcher.update(pool_view(model_view(replica("a", ReplicaState.FAILED, "out of memory")), version=2))
        assert "failed: out of memory" in (await error_of(queued)).message
        worker.emit(end_of(worker.requests[0], text="still served"))
        assert await text_of(running) == "still served"


async def test_a_replica_that_cannot_be_reached_is_given_up_after_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "CONNECT_GRACE_S", 0.05)
    worker = ScriptedWorker()
    worker.is_dead = True
    async with dispatching({"a": worker}) as dispatcher:
        assert isinstance(await error_of(submit(dispatcher)), ModelUnavailableError)
        with pytest.raises(ModelUnavailableError, match="cannot be reached"):
            submit(dispatcher)


async def test_a_worker_that_comes_back_is_connected_to_again() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        worker.die()
        worker.is_dead = False
        stream = submit(dispatcher)
        await asyncio.wait_for(worker.has_work.wait(), 5)
        worker.emit(end_of(worker.requests[0], text="back"))
        assert await text_of(stream) == "back"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FaultKind.CONTEXT_LENGTH_EXCEEDED, ContextLengthExceededError),
        (FaultKind.ENGINE_FAULT, ServerError),
    ],
)
async def test_a_fault_of_one_choice_ends_the_reply_and_the_other_choices(
    kind: FaultKind, error: type[ApiError]
) -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        stream = submit(dispatcher, choices=2)
        await settle()
        one, two = worker.requests
        worker.emit(fault_of(one, kind))
        assert isinstance(await error_of(stream), error)
        assert worker.aborted[-1] == two.request_id
        assert series(dispatcher, "requests_running") == 0


async def test_closing_a_stream_aborts_what_runs_and_forgets_what_waits() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=1)) as dispatcher:
        running, queued = submit(dispatcher), submit(dispatcher)
        await settle()
        queued.close()
        running.close()
        await settle()
        assert worker.aborted == [worker.requests[0].request_id]
        assert len(worker.requests) == 1
        assert series(dispatcher, "requests_queued") == 0


async def test_closing_a_finished_stream_aborts_nothing() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        worker.emit(end_of(worker.requests[0]))
        await text_of(stream)
        stream.close()
        assert worker.aborted == []


async def test_tokens_that_nobody_wants_any_more_are_counted() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        submit(dispatcher).close()
        late = submit(dispatcher)
        await settle()
        late.close()
        worker.emit(piece_of(worker.requests[0], "late"))
        await settle()
        assert series(dispatcher, "wasted_tokens_total") == 1


async def test_a_deadline_ends_waiting_and_running_requests() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=1), timeout_s=0.05) as dispatcher:
        running, queued = submit(dispatcher), submit(dispatcher)
        assert isinstance(await error_of(running), DeadlineError)
        assert isinstance(await error_of(queued), DeadlineError)
        assert worker.aborted == [worker.requests[0].request_id]


async def test_draining_refuses_the_new_and_lets_the_old_finish() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        dispatcher.drain()
        with pytest.raises(DrainingError):
            submit(dispatcher)
        assert not dispatcher.can_serve
        assert not await dispatcher.wait_idle(0.01)
        worker.emit(end_of(worker.requests[0], text="done"))
        assert await text_of(stream) == "done"
        assert await dispatcher.wait_idle(1)


async def test_a_removed_model_finishes_what_runs_and_knows_nobody_new() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=1)) as dispatcher:
        running, queued = submit(dispatcher), submit(dispatcher)
        await settle()
        dispatcher.update(pool_view(version=2))
        assert isinstance(await error_of(queued), ModelNotFoundError)
        worker.emit(end_of(worker.requests[0], text="done"))
        assert await text_of(running) == "done"
        await settle()
        assert dispatcher._retiring == set()


async def test_a_frame_that_comes_late_from_an_older_attempt_is_not_mixed_in() -> None:
    a, b = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": a, "b": b}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        first, other = (a, b) if a.requests else (b, a)
        first.emit(fault_of(first.requests[0], FaultKind.WORKER_FULL))
        await settle()
        first.emit(piece_of(first.requests[0], "stale"))
        other.emit(end_of(other.requests[0], text="fresh"))
        assert await text_of(stream) == "fresh"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(("submit", "piece", "end", "fault", "full", "close", "die", "revive")), st.integers(0, 7)
    ),
    max_size=40,
)


@given(ACTIONS)
def test_whatever_happens_every_request_ends_exactly_once(actions: list[tuple[str, int]]) -> None:
    asyncio.run(_play(actions))


async def _play(actions: list[tuple[str, int]]) -> None:
    workers = {"a": ScriptedWorker(), "b": ScriptedWorker()}
    async with dispatching(workers, of=entry(ongoing=2, queued=3)) as dispatcher:
        streams: list[OutputStream] = []
        for action, number in actions:
            _act(action, number, dispatcher, workers, streams)
            await settle()
            assert _num_open(dispatcher) == sum(not stream.is_ended for stream in streams)
        dispatcher.fail_all(ServerError())
        for stream in streams:
            await asyncio.wait_for(_to_the_end(stream), 1)
        assert _num_open(dispatcher) == 0
        assert dispatcher._sent_to == {}
        assert all(lane.num_queued == 0 for lane in dispatcher._lanes.values())
        links = [link for lane in dispatcher._lanes.values() for link in lane.links.values()]
        assert all(not link.in_flight for link in links)


def _num_open(dispatcher: Dispatcher) -> int:
    return len(dispatcher._jobs)


async def _to_the_end(stream: OutputStream) -> None:
    try:
        await text_of(stream)
    except ApiError:
        return


def _act(
    action: str, number: int, dispatcher: Dispatcher, workers: dict[str, ScriptedWorker], streams: list[OutputStream]
) -> None:
    worker = workers["ab"[number % 2]]
    if action == "submit":
        try:
            streams.append(submit(dispatcher, choices=1 + number % 3))
        except QueueFullError:
            return
    elif action == "close" and streams:
        streams[number % len(streams)].close()
    elif action == "die":
        worker.die()
    elif action == "revive":
        worker.is_dead = False
    elif worker.requests:
        request = worker.requests[-1 - number % len(worker.requests)]
        emits: dict[str, Callable[[], object]] = {
            "piece": lambda: worker.emit(piece_of(request, "x")),
            "end": lambda: worker.emit(end_of(request)),
            "fault": lambda: worker.emit(fault_of(request, FaultKind.ENGINE_FAULT)),
            "full": lambda: worker.emit(fault_of(request, FaultKind.WORKER_FULL)),
        }
        emits.get(action, lambda: None)()


async def test_a_link_without_a_channel_refuses_to_send() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        link = dispatcher._lanes[MODEL].links["a"]
        await link.close()
        with pytest.raises(ChannelClosedError):
            link.send([])


async def test_large_requests_go_in_batches_that_a_channel_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "MAX_BATCH_BYTES", 3_200)
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=entry(ongoing=8)) as dispatcher:
        submit(dispatcher, choices=5, prompt=TextPrompt((TextSegment("x" * 1_000, trusted=True),)))
        submit(dispatcher, prompt=TextPrompt((TextSegment("x" * 5_000, trusted=True),)))
        submit(dispatcher)
        await settle()
        assert [len(batch) for batch in worker.batches] == [2, 2, 1, 1, 1]
        assert len(dispatcher._sent_to) == 7


async def test_a_request_that_no_channel_carries_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticket, "MAX_REQUEST_BYTES", 1_000)
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        with pytest.raises(ContextLengthExceededError, match="more than the limit of 1000 bytes"):
            submit(dispatcher, prompt=TextPrompt((TextSegment("x" * 1_000, trusted=True),)))
        assert await dispatcher.wait_idle(0.01)
        submit(dispatcher)
        await settle()
        assert len(worker.requests) == 1


async def test_a_worker_that_connects_and_breaks_off_is_asked_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_link, "FIRST_BACK_OFF_S", 0.008)
    worker = BreakingWorker()
    async with dispatching({"a": worker}):
        await asyncio.sleep(0.2)
    # Waits of 8, 16, 32, 64 and 128 ms, each at least half of it.
    assert 3 <= worker.num_connections <= 6


class BreakingWorker(ScriptedWorker):
    """Takes every connection, and breaks it off before its first frame."""

    num_connections = 0

    def connect(self, on_frame: Callable[[Frame], None]) -> None:
        super().connect(on_frame)
        self.num_connections += 1
        self._channels[-1].break_off("not for you")


async def test_replicas_that_are_gone_are_not_remembered_as_draining() -> None:
    worker, other = ScriptedWorker(), ScriptedWorker()
    async with dispatching({"a": worker, "b": other}, shown="a") as dispatcher:
        submit(dispatcher)
        await settle()
        worker.emit(fault_of(worker.requests[0], FaultKind.WORKER_DRAINING))
        await settle()
        dispatcher.update(pool_view(model_view(replica("a"), replica("b")), version=2))
        assert dispatcher._drained == {"a"}
        dispatcher.update(pool_view(model_view(replica("b")), version=3))
        assert dispatcher._drained == set()


async def test_faults_and_losses_are_logged_under_the_id_that_the_client_knows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}) as dispatcher:
        stream = submit(dispatcher)
        await settle()
        worker.emit(fault_of(worker.requests[0], FaultKind.ENGINE_FAULT, "out of registers"))
        await error_of(stream)
        submit(dispatcher)
        await settle()
        worker.die()
        await settle()
    assert f"request req_known failed in replica a of {MODEL}: out of registers" in caplog.text
    assert f"request req_known lost replica a of {MODEL}" in caplog.text


def sleeping(*replicas: ReplicaView, may_wait: bool = True) -> ModelView:
    return msgspec.structs.replace(model_view(*replicas), may_wait=may_wait, num_wanted=len(replicas))


async def test_requests_wait_for_a_model_that_sleeps_and_whoever_wakes_it_is_told_at_once() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, shown="") as dispatcher:
        dispatcher.update(pool_view(sleeping()))
        assert dispatcher.can_serve, "a balancer that asks must send the request that wakes it"
        stream = submit(dispatcher)
        assert dispatcher.starved.is_set()
        await settle()
        assert [load.queued for _, load in dispatcher.loads] == [1]
        dispatcher.update(pool_view(sleeping(replica("a", ReplicaState.STARTING)), version=2))
        dispatcher.update(pool_view(sleeping(replica("a")), version=3))
        await settle()
        (request,) = worker.requests
        worker.emit(end_of(request))
        assert await text_of(stream) == ""


async def test_a_waiting_request_is_told_why_once_there_is_nothing_to_wait_for() -> None:
    async with dispatching({}) as dispatcher:
        dispatcher.update(pool_view(sleeping()))
        stream = submit(dispatcher)
        failed = replica("a", ReplicaState.FAILED, "no such file")
        dispatcher.update(pool_view(sleeping(failed, may_wait=False), version=2))
        error = await error_of(stream)
        assert isinstance(error, ModelUnavailableError)
        assert "no such file" in error.message
        with pytest.raises(ModelUnavailableError):
            submit(dispatcher)


async def test_those_that_wait_for_a_sleeping_model_are_bounded_and_have_a_deadline() -> None:
    async with dispatching({}, timeout_s=0.05) as dispatcher:
        dispatcher.update(pool_view(sleeping()))
        streams = [submit(dispatcher) for _ in range(8)]
        with pytest.raises(QueueFullError):
            submit(dispatcher)
        assert isinstance(await error_of(streams[0]), DeadlineError)


async def test_a_served_models_requests_wake_nobody() -> None:
    async with dispatching({"a": ScriptedWorker()}) as dispatcher:
        submit(dispatcher)
        assert not dispatcher.starved.is_set()
        await settle()
        assert [(load.queued, dict(load.running)) for _, load in dispatcher.loads] == [(0, {"a": 1})]


def of_batch(*, slots: int, ongoing: int | None = None) -> RegistryEntry:
    return entry(ongoing=slots if ongoing is None else ongoing, max_batch_size=slots)


def idle() -> WorkerStatus:
    return WorkerStatus()


async def test_background_work_leaves_a_part_of_each_replica_to_clients() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=8)) as dispatcher:
        while dispatcher._lanes[MODEL].takes_background:
            submit(dispatcher, is_background=True)
        await settle()
        assert len(worker.requests) == 6
        for _ in range(2):
            submit(dispatcher)
        await settle()
        assert len(worker.requests) == 8
        assert worker.aborted == [], "there was room for both"


@pytest.mark.parametrize("ongoing", [4, 16])
async def test_background_work_is_set_aside_when_clients_want_what_it_has(ongoing: int) -> None:
    """Also where a replica may be sent more than it can run at once: nobody waits in it behind a batch."""
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=4, ongoing=ongoing)) as dispatcher:
        behind = [submit(dispatcher, is_background=True) for _ in range(3)]
        await settle()
        worker.emit(piece_of(worker.requests[0], "come far"), status=idle())
        await settle()
        clients = [submit(dispatcher) for _ in range(3)]
        await settle()
        assert len(worker.requests) == 6, "all clients are there"
        assert len(worker.aborted) == 2
        for stream in behind[1:]:
            assert isinstance(await error_of(stream), SetAsideError)
        assert not behind[0].is_ended, "what has come farthest stays"
        assert not any(stream.is_ended for stream in clients)


async def test_no_client_is_refused_for_background_work() -> None:
    worker = ScriptedWorker()
    of = entry(ongoing=2, queued=2, max_batch_size=2)
    async with dispatching({"a": worker}, of=of) as dispatcher:
        for _ in range(5):
            submit(dispatcher, is_background=True)
        await settle()
        for _ in range(4):
            submit(dispatcher)
        with pytest.raises(QueueFullError):
            submit(dispatcher)


async def test_background_work_waits_until_no_client_does() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=1)) as dispatcher:
        submit(dispatcher)
        submit(dispatcher)
        turn = asyncio.create_task(dispatcher.background_turn(MODEL))
        await settle()
        assert not turn.done()
        worker.emit(end_of(worker.requests[0]), status=idle())
        await settle()
        assert turn.done(), "one may wait for room"
        behind = submit(dispatcher, is_background=True)
        await settle()
        assert len(worker.requests) == 2
        worker.emit(end_of(worker.requests[1]), status=idle())
        await settle()
        worker.emit(end_of(worker.requests[2], text="done"), status=idle())
        assert await text_of(behind) == "done"


async def test_what_other_gateways_have_in_a_replica_counts_for_background_work() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=4)) as dispatcher:
        worker.emit(status=WorkerStatus(num_running=2))
        await settle()
        behind = [submit(dispatcher, is_background=True) for _ in range(3)]
        await settle()
        assert len(worker.requests) == 1
        worker.emit(status=WorkerStatus(num_running=5))
        await settle()
        assert isinstance(await error_of(behind[0]), SetAsideError)


async def test_background_work_that_no_worker_had_in_its_time_is_given_back() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=1), timeout_s=0.05) as dispatcher:
        client, behind = submit(dispatcher), submit(dispatcher, is_background=True)
        assert isinstance(await error_of(behind), SetAsideError)
        assert isinstance(await error_of(client), DeadlineError)
        sent = submit(dispatcher, is_background=True)
        assert isinstance(await error_of(sent), DeadlineError), "a worker had it"


async def test_all_background_work_counts_as_one_request_to_the_pool() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=8)) as dispatcher:
        for _ in range(8):
            submit(dispatcher, is_background=True)
        assert (load_of(dispatcher).queued, load_of(dispatcher).running) == (1, {"a": 0})
        await settle()
        submit(dispatcher)
        await settle()
        assert (load_of(dispatcher).queued, load_of(dispatcher).running) == (0, {"a": 2})


async def test_draining_gives_back_what_nobody_waits_for_and_no_worker_has() -> None:
    worker = ScriptedWorker()
    async with dispatching({"a": worker}, of=of_batch(slots=1)) as dispatcher:
        runs, waits = (submit(dispatcher, is_background=True) for _ in range(2))
        await settle()
        turn = asyncio.create_task(dispatcher.background_turn(MODEL))
        await settle()
        dispatcher.drain()
        assert isinstance(await error_of(waits), DrainingError)
        with pytest.raises(DrainingError):
            await turn
        worker.emit(end_of(worker.requests[0], text="done"))
        assert await text_of(runs) == "done"
