"""One model over several ranks: rank 0 sends each step's plan to the others, and all run it at the same time.

The ranks meet inside the model, in its collectives; only rank 0's logits are used. Whatever fails on a rank leaves the
others waiting there, so a failure is never one request's: it ends the group, and the pool builds a new one.
"""

from __future__ import annotations

import msgspec

from workers.engine.runner import Chunk, LogitsRows, ModelRunner, StepPlan
from workers.errors import DeviceLostError
from workers.group import FollowerGroup, LeaderGroup

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Chunk, ...])
"""Blocks need no `kv_operations`: what a paged cache does is all in the chunks."""


class TensorParallelRunner:
    """Rank 0's runner."""

    def __init__(self, runner: ModelRunner, group: LeaderGroup) -> None:
        self._runner = runner
        self._group = group

    def run(self, plan: StepPlan) -> LogitsRows:
        self._group.broadcast(_encoder.encode(plan.chunks))
        return _run_together(self._runner, plan)


def follow(runner: ModelRunner, group: FollowerGroup) -> None:
    """Run what rank 0 runs. Never returns; raises `DeviceLostError` when the group has ended."""
    while True:
        _run_together(runner, StepPlan(_decoder.decode(group.receive())))


def _run_together(runner: ModelRunner, plan: StepPlan) -> LogitsRows:
    try:
        return runner.run(plan)
    except DeviceLostError:
        raise
    except Exception as error:
        raise DeviceLostError(f"a step failed on one rank of a group: {error}") from error
