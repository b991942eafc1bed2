"""The lock of the cache: one holder, waiting is visible and bounded, a stale file means nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from workers.errors import SourceError
from workers.sources.lock import file_lock


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.sources.lock._RETRY_S", 0.01)


def ignore(_line: str) -> None:
    pass


def test_a_second_holder_gives_up_after_its_deadline_naming_the_first(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "a.lock"
    with (
        file_lock(lock, "fetching a", ignore),
        pytest.raises(SourceError, match=rf"process {os.getpid()} has been fetching a for more than 0.02 s"),
        file_lock(lock, "fetching a", ignore, timeout_s=0.02),
    ):
        pass


def test_waiting_is_reported_once_and_ends_when_the_lock_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lines: list[str] = []
    reported = threading.Event()
    entered = threading.Event()

    def report(line: str) -> None:
        lines.append(line)
        reported.set()

    def wait_for_it() -> None:
        with file_lock(lock, "fetching a", report, timeout_s=30):
            entered.set()

    waiter = threading.Thread(target=wait_for_it)
    with file_lock(lock, "fetching a", ignore):
        waiter.start()
        assert reported.wait(10)
        assert not entered.is_set()
    assert entered.wait(10)
    waiter.join(10)
    assert lines == [f"waiting for process {os.getpid()}, which is fetching a"]


def test_a_lock_file_left_behind_does_not_block(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("999999999")
    with file_lock(lock, "fetching a", ignore, timeout_s=0):
        assert lock.read_text() == str(os.getpid())


def test_the_lock_is_free_again_after_a_failure(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with pytest.raises(SourceError, match="no"), file_lock(lock, "fetching a", ignore):
        raise SourceError("no")
    with file_lock(lock, "fetching a", ignore, timeout_s=0):
        pass
