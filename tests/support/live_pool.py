"""What tests of a real pool share: entries that need no model, and waits for what the pool's views shall show."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from model_registry.contract import (
    CHANNEL_METHOD,
    CONTRACT_VERSION,
    SECRET_METADATA,
    VERSION_METADATA,
    GenerationRequest,
    ModelView,
    PoolView,
    ReplicaState,
    SamplingParams,
    SubmitBatch,
    TextPrompt,
    TextSegment,
    decode_frame,
    encode_command,
)
from model_registry.schema import RegistryEntry
from workers.pool.client import PoolClient
from workers.pool.state import PoolOptions

OPTIONS = PoolOptions(load_timeout_s=3, drain_timeout_s=2)


def entry(
    model_id: str,
    *,
    replicas: int = 1,
    load_time_s: float = 0.0,
    initialization: dict[str, Any] | None = None,
    actor_options: dict[str, Any] | None = None,
    **scaling: Any,
) -> RegistryEntry:
    """An echo model on half a CPU."""
    return RegistryEntry.model_validate(
        {
            "deployment_config": {
                "autoscaling_config": {"min_replicas": replicas, "max_replicas": replicas},
                "ray_actor_options": actor_options or {},
            },
            "model_config": {
                "model_id": model_id,
                "initialization": {
                    "initializer": {"type": "Echo", "load_time_s": load_time_s, "step_time_s": 0.01},
                    **(initialization or {}),
                },
            },
            "scaling_config": {"num_gpus_per_worker": 0, "num_cpus_per_worker": 0.5, **scaling},
        }
    )


async def until(pool: PoolClient, condition: Callable[[dict[str, ModelView]], bool], timeout_s: float = 25) -> PoolView:
    """The first view of which the condition holds."""
    async with asyncio.timeout(timeout_s):
        async for view in pool.views():
            if condition({model.model_id: model for model in view.models}):
                return view
    raise AssertionError("views never end")


def num_ready(model: ModelView) -> int:
    return sum(replica.state is ReplicaState.READY for replica in model.replicas)


async def generate(view: PoolView, address: str, text: str, **sampling: Any) -> str:
    """What the worker at the address answers to a prompt."""
    prompt = TextPrompt((TextSegment(text, trusted=True),))
    request = GenerationRequest(request_id=os.urandom(4).hex(), prompt=prompt, sampling=SamplingParams(**sampling))
    metadata = ((SECRET_METADATA, view.secret), (VERSION_METADATA, CONTRACT_VERSION))
    answer = ""
    async with asyncio.timeout(20), grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(CHANNEL_METHOD)(metadata=metadata)
        await call.write(encode_command(SubmitBatch((request,))))
        while True:
            for output in decode_frame(await call.read()).outputs:
                assert output.fault is None
                answer += output.text
                if output.is_final:
                    return answer


async def ended(*pids: int) -> None:
    """Until none of the processes runs; one that nobody has waited for yet does not run any more."""
    async with asyncio.timeout(5):
        while any(_runs(pid) for pid in pids):  # noqa: ASYNC110  no child of ours that could be waited for
            await asyncio.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False
