"""What a person sees while models come up: one line per change, and in the end what became of each model.

Pure: fed with views of the pool, gives lines. `serve` and `deploy` print them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from model_registry.contract import ModelView, PoolView, ReplicaState, ReplicaView

QUIET_S: Final = 1.0
"""At least so long between two lines about one step of a replica, such as `fetching weights: 43 of 98 MB`."""
HOPELESS_S: Final = 10.0
"""A model that has been without a place for so long is reported, and no longer waited for."""


@dataclass(slots=True)
class _Shown:
    """What was last printed about one replica."""

    state: ReplicaState
    text: str
    at_s: float

    def is_outdated_by(self, state: ReplicaState, text: str, now_s: float) -> bool:
        """Whether there is something new to print: another step at once, progress within a step now and then."""
        if state is not self.state or _step(text) != _step(self.text):
            return True
        return text != self.text and now_s - self.at_s >= QUIET_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one model. `reason` is empty when it serves."""

    model_id: str
    reason: str

    @property
    def serves(self) -> bool:
        return not self.reason


class Progress:
    """Follows some models of the pool from their deployment on."""

    def __init__(self, model_ids: Collection[str], clock: Callable[[], float]) -> None:
        """`clock` gives seconds, from any start."""
        self._model_ids = model_ids
        self._clock = clock
        self._started_at = clock()
        self._shown: dict[tuple[str, int], _Shown] = {}
        self._homeless_since: dict[tuple[str, int], float] = {}
        self._failures: dict[tuple[str, int], str] = {}
        self._outcomes: dict[str, Outcome] = {}

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The models whose first attempt has ended, one way or the other."""
        return tuple(self._outcomes[model_id] for model_id in self._model_ids if model_id in self._outcomes)

    @property
    def is_settled(self) -> bool:
        return len(self._outcomes) == len(self._model_ids)

    def update(self, view: PoolView) -> list[str]:
        """Lines about what changed."""
        lines: list[str] = []
        for model in view.models:
            if model.model_id in self._model_ids:
                self._judge(model)
                lines.extend(self._lines(model))
        return lines

    def _lines(self, model: ModelView) -> Iterator[str]:
        now = self._clock()
        for index, replica in enumerate(model.replicas):
            shown = self._shown.get((model.model_id, index))
            text = text_of(replica)
            if shown is not None and not shown.is_outdated_by(replica.state, text, now):
                continue
            self._shown[model.model_id, index] = _Shown(replica.state, text, now)
            number = f" {index + 1}/{len(model.replicas)}" if len(model.replicas) > 1 else ""
            yield f"[{now - self._started_at:6.1f}s] {model.model_id}{number}: {text}"

    def _judge(self, model: ModelView) -> None:
        """Note how the model's first attempt ended, once it has; a model that serves later after all does serve."""
        reasons = [self._reason((model.model_id, index), replica) for index, replica in enumerate(model.replicas)]
        serves = any(replica.state is ReplicaState.READY for replica in model.replicas)
        sleeps = not model.num_wanted and model.may_wait
        refusals = [replica.refusal for replica in model.replicas if replica.refusal]
        if refusals:
            self._outcomes[model.model_id] = Outcome(model.model_id, refusals[0])
        elif (serves or sleeps) and not model.num_outdated:
            self._outcomes[model.model_id] = Outcome(model.model_id, "")
        elif (failures := [one for one in reasons if one]) and len(failures) == len(reasons) - model.num_outdated:
            self._outcomes[model.model_id] = Outcome(model.model_id, failures[0])

    def _reason(self, key: tuple[str, int], replica: ReplicaView) -> str:
        """Why this replica's first attempt came to nothing; empty while it may still serve."""
        if replica.state is ReplicaState.FAILED:
            self._failures[key] = text_of(replica)
        if not _has_no_place(replica):
            self._homeless_since.pop(key, None)
        elif self._clock() - self._homeless_since.setdefault(key, self._clock()) >= HOPELESS_S:
            return text_of(replica)
        return self._failures.get(key, "")


def text_of(replica: ReplicaView) -> str:
    """A replica's state in a few words."""
    if replica.state is ReplicaState.FAILED:
        return f"failed: {replica.detail}"
    return replica.detail or str(replica.state)


def _step(text: str) -> str:
    """What is being done, without how far it is."""
    return text.partition(":")[0]


def _has_no_place(replica: ReplicaView) -> bool:
    return replica.state is ReplicaState.PENDING and replica.detail.startswith("pending:")
