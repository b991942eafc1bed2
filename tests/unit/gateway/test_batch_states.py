"""The life of a batch: the table of what may follow what, and that every way through it ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batch_states import ACTIVE, FOLLOWING, ForbiddenChangeError, changed
from gateway.protocol.batches import Batch, BatchStatus

S = BatchStatus
ALLOWED = {
    (S.VALIDATING, S.IN_PROGRESS),
    (S.VALIDATING, S.FAILED),
    (S.VALIDATING, S.CANCELLING),
    (S.IN_PROGRESS, S.FINALIZING),
    (S.IN_PROGRESS, S.CANCELLING),
    (S.FINALIZING, S.COMPLETED),
    (S.FINALIZING, S.EXPIRED),
    (S.CANCELLING, S.CANCELLED),
}


def batch_in(status: BatchStatus) -> Batch:
    return Batch(
        id="batch_a",
        endpoint="/v1/completions",
        input_file_id="file-a",
        completion_window="24h",
        created_at=1,
        expires_at=2,
        status=status,
    )


@pytest.mark.parametrize("before", BatchStatus)
@pytest.mark.parametrize("after", BatchStatus)
def test_a_batch_changes_as_the_table_says_and_in_no_other_way(before: BatchStatus, after: BatchStatus) -> None:
    batch = batch_in(before)
    if (before, after) not in ALLOWED:
        with pytest.raises(ForbiddenChangeError, match=f"that is {before} does not become {after}"):
            changed(batch, after, 7.5)
        return
    now = changed(batch, after, 7.5)
    assert now.status is after
    assert getattr(now, f"{after}_at") == 7


def test_what_is_over_stays_so() -> None:
    assert set(ACTIVE) == set(BatchStatus) - {S.FAILED, S.COMPLETED, S.EXPIRED, S.CANCELLED}


@given(choices=st.lists(st.integers(min_value=0), min_size=len(BatchStatus)))
def test_every_way_ends_and_notes_each_moment_once(choices: list[int]) -> None:
    batch, now = batch_in(S.VALIDATING), 10
    for choice in choices:
        following = sorted(FOLLOWING[batch.status])
        if not following:
            break
        now += 1
        batch = changed(batch, following[choice % len(following)], now)
        assert getattr(batch, f"{batch.status}_at") == now
    assert batch.status not in ACTIVE
