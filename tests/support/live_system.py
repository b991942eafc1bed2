"""Gateway, channel and engine together, as `initializer_for` loads it: everything but Ray, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai

from gateway.channel import GrpcChannel
from model_registry.schema import RegistryEntry
from tests.support.live_gateway import LiveGateway
from tests.support.live_worker import LiveWorker
from tests.support.scripted_pool import SECRET, pool_view
from workers.initializers import build_engine, initializer_for


@dataclass(frozen=True, slots=True)
class System:
    """A gateway in front of one worker."""

    gateway: LiveGateway
    worker: LiveWorker
    model: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gateway.url}/v1", api_key="none", max_retries=0, timeout=60)


def run_system(entry: RegistryEntry) -> Iterator[System]:
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda line: None))
    with LiveWorker(engine, SECRET) as worker:
        view = pool_view(worker.view(entry))
        with LiveGateway({}, view=view, connect=GrpcChannel) as gateway:
            yield System(gateway, worker, entry.model_id)
