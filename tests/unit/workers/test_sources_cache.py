"""Things appear in the cache whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from workers.errors import SourceError
from workers.sources.cache import default_cache_dir, partial_folder, require_free_space, sha256_of


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVIARY_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_cache_is_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AVIARY_CACHE_DIR", raising=False)
    if value is not None:
        monkeypatch.setenv("AVIARY_CACHE_DIR", value)
    assert default_cache_dir() == tmp_path / ".cache" / "aviary"


def test_a_relative_cache_folder_does_not_follow_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVIARY_CACHE_DIR", "weights")
    assert default_cache_dir() == tmp_path / "weights"


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "model"
    with partial_folder(target) as folder:
        (folder / "weights").write_text("all")
        assert not target.exists()
    assert (target / "weights").read_text() == "all"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with partial_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise SourceError("no")

    with pytest.raises(SourceError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_first(tmp_path: Path) -> None:
    left_over = tmp_path / "model.partial"
    left_over.mkdir()
    (left_over / "weights").write_text("half")
    with partial_folder(tmp_path / "model") as folder:
        assert list(folder.iterdir()) == []
    assert list((tmp_path / "model").iterdir()) == []


def test_a_damaged_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("damaged")
    with partial_folder(target) as folder:
        (folder / "new").write_text("good")
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_write_that_cannot_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    free_bytes = shutil.disk_usage(tmp_path).free
    with pytest.raises(SourceError, match=r"unpacking x needs \d+ MB in .*, \d+ MB are free; .*AVIARY_CACHE_DIR"):
        require_free_space(tmp_path, free_bytes * 2, "unpacking x")
    require_free_space(tmp_path, 1, "unpacking x")


def test_the_checksum_covers_files_longer_than_one_read_and_reports_its_end(tmp_path: Path) -> None:
    content = bytes(range(256)) * 12_000
    (tmp_path / "file").write_bytes(content)
    lines: list[str] = []
    assert sha256_of(tmp_path / "file", lines.append) == hashlib.sha256(content).hexdigest()
    assert lines[-1] == "verifying weights: 3 of 3 MB"
