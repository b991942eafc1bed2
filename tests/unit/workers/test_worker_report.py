"""What a worker reports besides its life: the bytes its process has fetched."""

from __future__ import annotations

from model_registry.schema import RegistryEntry
from workers.sources.traffic import FETCHED
from workers.worker import Worker

ECHO = {"model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}}}


async def test_a_report_counts_what_was_fetched_since_the_last_one() -> None:
    worker = Worker(RegistryEntry.model_validate(ECHO), "r1", "secret", "127.0.0.1")
    before = (await worker.report()).fetched_bytes
    FETCHED.add(7)
    assert (await worker.report()).fetched_bytes == before + 7
