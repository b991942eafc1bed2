"""Gateway processes that die or hang with open streams, over the real channel: what the worker does about it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_registry.schema import RegistryEntry
from tests.support.faults import NoteFault
from tests.support.gateways import Gateways, Stream, running_gateways, streams_on_every_process, wait_for
from tests.support.live_worker import LiveWorker
from tests.support.scripted_pool import SECRET
from workers.channel import LEASE_S
from workers.initializers import build_engine, initializer_for

KILLS_PER_ROUND = 10
NUM_STREAMS = 12
ORPHANS_END_S = 5.0
PROMPT = "x" * 900
"""Said again by the model, in 27 s."""

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class System:
    gateways: Gateways
    worker: LiveWorker

    def until_generating(self, count: int, timeout_s: float) -> float:
        """Seconds until the worker has exactly so many sequences."""
        began_at = time.monotonic()
        wait_for(lambda: self.worker.num_sequences == count, timeout_s)
        return time.monotonic() - began_at


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    initialization = {"initializer": {"type": "Echo", "step_time_s": 0.03}}
    generation = {"max_batch_size": 2 * NUM_STREAMS}
    model = {"model_id": "test/echo", "initialization": initialization, "generation": generation}
    entry = RegistryEntry.model_validate({"model_config": model})
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda line: None))
    with (
        LiveWorker(engine, SECRET) as worker,
        running_gateways(tmp_path, TEST_WORKER=worker.address, TEST_ONGOING=str(NUM_STREAMS)) as gateways,
    ):
        yield System(gateways, worker)


def split(by_pid: dict[int, list[Stream]]) -> tuple[int, list[Stream], list[Stream]]:
    """A process, its streams, and those of the other."""
    (victim, lost), (_, kept) = sorted(by_pid.items(), key=lambda item: len(item[1]))
    return victim, lost, kept


def test_a_killed_gateway_leaves_no_generation_behind_and_the_others_notice_nothing(
    system: System, rounds: int, note: NoteFault
) -> None:
    num_kills = KILLS_PER_ROUND * rounds
    in_time, ends = 0, Counter[str]()
    for _ in range(num_kills):
        victim, lost, kept = split(streams_on_every_process(system.gateways, NUM_STREAMS, PROMPT))
        assert system.worker.num_sequences == NUM_STREAMS
        os.kill(victim, signal.SIGKILL)
        in_time += system.until_generating(len(kept), 2 * ORPHANS_END_S) <= ORPHANS_END_S
        for stream in lost:
            stream.join(5)
            assert stream.error is not None
        said = [len(stream.text) for stream in kept]
        wait_for(lambda said=said, kept=kept: all(len(s.text) > n for s, n in zip(kept, said, strict=True)), 5)  # type: ignore[misc]
        for stream in kept:
            stream.leave()
        system.until_generating(0, 5)
        system.gateways.until_all_serve(without=victim)
        ends.update({"lost with their gateway and aborted": len(lost), "gone on": len(kept)})
    note("kill -9 of a gateway", in_time, num_kills, ends)
    assert in_time == num_kills


def test_a_gateway_that_hangs_loses_its_lease_and_the_others_notice_nothing(system: System, note: NoteFault) -> None:
    """Its kernel still acknowledges every packet, as for a process that is stopped or swapped out."""
    victim, lost, kept = split(streams_on_every_process(system.gateways, NUM_STREAMS, PROMPT))
    assert system.worker.num_sequences == NUM_STREAMS
    os.kill(victim, signal.SIGSTOP)
    system.until_generating(len(kept), LEASE_S + 2)
    assert all(stream.is_alive() for stream in kept)
    os.kill(victim, signal.SIGCONT)
    for stream in lost:
        stream.join(10)
        assert '"server_error"' in stream.text
    for stream in kept:
        stream.leave()
    system.until_generating(0, 5)
    note("SIGSTOP of a gateway", 1, 1, {"aborted": len(lost), "gone on": len(kept)})
