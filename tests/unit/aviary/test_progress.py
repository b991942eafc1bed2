"""What a person reads while models come up."""

from __future__ import annotations

import msgspec

from aviary.progress import HOPELESS_S, Outcome, Progress
from aviary.status_table import table_of
from model_registry.contract import ModelView, PoolView, ReplicaState, ReplicaView
from model_registry.schema import RegistryEntry

STARTING, READY, FAILED, PENDING = (
    ReplicaState.STARTING,
    ReplicaState.READY,
    ReplicaState.FAILED,
    ReplicaState.PENDING,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def model(model_id: str, *replicas: tuple[ReplicaState, str]) -> ModelView:
    entry = RegistryEntry.model_validate(
        {"model_config": {"model_id": model_id, "initialization": {"initializer": {"type": "Echo"}}}}
    )
    views = tuple(ReplicaView(replica_id=f"r{i}", state=s, detail=d) for i, (s, d) in enumerate(replicas))
    return ModelView(entry=entry, created=1, replicas=views)


def pool(*models: ModelView) -> PoolView:
    return PoolView(version=1, secret="never shown", models=models)


def is_settled(progress: Progress) -> bool:
    return progress.is_settled


def test_every_change_is_one_line_with_the_time_and_the_model() -> None:
    clock = Clock()
    progress = Progress(["a/b"], clock)
    clock.now_s += 12.34
    assert progress.update(pool(model("a/b", (STARTING, "fetching weights: 43 of 98 MB")))) == [
        "[  12.3s] a/b: fetching weights: 43 of 98 MB"
    ]
    assert progress.update(pool(model("a/b", (STARTING, "fetching weights: 43 of 98 MB")))) == []
    assert progress.update(pool(model("a/b", (READY, "")))) == ["[  12.3s] a/b: ready"]


def test_replicas_are_numbered_when_there_are_several() -> None:
    lines = Progress(["a/b"], Clock()).update(pool(model("a/b", (READY, ""), (STARTING, "loading"))))
    assert lines == ["[   0.0s] a/b 1/2: ready", "[   0.0s] a/b 2/2: loading"]


def test_a_chatty_load_prints_one_line_per_second() -> None:
    clock = Clock()
    progress = Progress(["a/b"], clock)
    printed = 0
    for megabytes in range(40):
        printed += len(progress.update(pool(model("a/b", (STARTING, f"fetching weights: {megabytes} of 98 MB")))))
        clock.now_s += 0.1
    assert printed == 4


def test_the_next_step_is_shown_at_once_however_short_the_last_one_was() -> None:
    clock = Clock()
    progress = Progress(["a/b"], clock)
    shown = [
        line.rpartition("a/b: ")[2]
        for text in ("converting weights: 270 of 272 tensors", "loading weights", "warming up")
        for line in progress.update(pool(model("a/b", (STARTING, text))))
    ]
    assert shown == ["converting weights: 270 of 272 tensors", "loading weights", "warming up"]


def test_other_models_of_the_cluster_are_not_mentioned() -> None:
    progress = Progress(["a/b"], Clock())
    assert progress.update(pool(model("other/model", (READY, "")))) == []
    assert not is_settled(progress)


def test_it_is_settled_when_every_model_has_served_or_failed() -> None:
    progress = Progress(["a/b", "c/d"], Clock())
    progress.update(pool(model("a/b", (READY, "")), model("c/d", (STARTING, "loading"))))
    assert not is_settled(progress)
    progress.update(pool(model("a/b", (READY, "")), model("c/d", (FAILED, "no such file; next attempt in 1 s"))))
    assert is_settled(progress)
    assert progress.outcomes == (Outcome("a/b", ""), Outcome("c/d", "failed: no such file; next attempt in 1 s"))


def test_a_model_that_serves_after_a_failure_serves() -> None:
    progress = Progress(["a/b"], Clock())
    progress.update(pool(model("a/b", (FAILED, "out of luck"))))
    progress.update(pool(model("a/b", (READY, ""))))
    assert [outcome.serves for outcome in progress.outcomes] == [True]


def test_a_model_without_a_place_is_given_up_only_after_a_while() -> None:
    clock = Clock()
    progress = Progress(["a/b"], clock)
    homeless = pool(model("a/b", (PENDING, "pending: no node offers g5")))
    progress.update(homeless)
    assert not is_settled(progress)
    clock.now_s += HOPELESS_S
    progress.update(homeless)
    assert progress.outcomes == (Outcome("a/b", "pending: no node offers g5"),)


def test_the_status_table_is_aligned_and_never_holds_the_secret() -> None:
    lines = table_of(pool(model("a/b", (READY, ""), (FAILED, "no such file")), model("long/name")))
    assert lines == [
        "MODEL      REPLICA  STATE   DETAIL",
        "a/b        r0       ready",
        "a/b        r1       failed  no such file",
        "long/name  -        -       it has no replicas",
    ]


def test_a_failed_replica_does_not_settle_a_model_whose_other_replica_may_still_serve() -> None:
    progress = Progress(["a/b"], Clock())
    progress.update(pool(model("a/b", (FAILED, "no luck"), (STARTING, "loading"))))
    assert not is_settled(progress)
    progress.update(pool(model("a/b", (PENDING, "waiting for resources"), (FAILED, "none here"))))
    assert progress.outcomes == (Outcome("a/b", "failed: no luck"),)


def test_a_model_that_cannot_take_its_new_sizes_is_waited_for_and_then_told() -> None:
    progress = Progress(["a/b"], Clock())
    resizing = msgspec.structs.replace(model("a/b", (READY, "takes other sizes")), num_outdated=1)
    progress.update(pool(resizing))
    assert not is_settled(progress)
    refused = ReplicaView(replica_id="r0", state=READY, detail="no room", refusal="no room")
    progress.update(pool(msgspec.structs.replace(resizing, replicas=(refused,))))
    assert progress.outcomes == (Outcome("a/b", "no room"),)
    progress.update(pool(model("a/b", (READY, ""))))
    assert progress.outcomes == (Outcome("a/b", ""),)
