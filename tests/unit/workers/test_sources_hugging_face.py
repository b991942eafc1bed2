"""The Hub's client is told what may be fetched, and its errors become one line with the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from workers.errors import SourceError
from workers.sources.hugging_face import _progress_bar, fetch_snapshot


def ignore(_line: str) -> None:
    pass


class FakeHub:
    """Stands for `snapshot_download`: remembers how it was called, then answers or fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure: Exception | None = None
        self.arguments: dict[str, Any] = {}

    def __call__(self, repository: str, **arguments: Any) -> str:
        self.arguments = {"repository": repository, **arguments}
        if self.failure is not None:
            raise self.failure
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_only_data_files_are_fetched(hub: FakeHub) -> None:
    assert fetch_snapshot("org/model", {}, ignore) == hub.folder
    assert set(hub.arguments["allow_patterns"]) == {"*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"}


def test_python_files_are_fetched_where_remote_code_is_trusted(hub: FakeHub) -> None:
    fetch_snapshot("org/model", {"trust_remote_code": True}, ignore)
    assert "*.py" in hub.arguments["allow_patterns"]


def test_revision_and_token_reach_the_client_and_other_arguments_do_not(hub: FakeHub) -> None:
    fetch_snapshot("org/model", {"revision": "v2", "token": "t", "use_cache": True}, ignore)
    assert (hub.arguments["revision"], hub.arguments["token"]) == ("v2", "t")
    assert "use_cache" not in hub.arguments


def test_a_repository_with_pickled_weights_only_is_refused(hub: FakeHub) -> None:
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="org/model has no safetensors weights, and pickled weights are refused"):
        fetch_snapshot("org/model", {}, ignore)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (HFValidationError("x"), "'org/model' is neither a Hugging Face id nor an absolute"),
        (
            LocalEntryNotFoundError("x"),
            "org/model is not completely in the cache and the Hugging",
        ),
        (RuntimeError("first line\nsecond line"), "cannot fetch org/model from the Hugging Face Hub: first line$"),
        (RuntimeError(""), "cannot fetch org/model from the Hugging Face Hub: RuntimeError$"),
    ],
)
def test_failures_are_one_line_that_says_what_to_do(hub: FakeHub, failure: Exception, message: str) -> None:
    hub.failure = failure
    with pytest.raises(SourceError, match=message) as raised:
        fetch_snapshot("org/model", {}, ignore)
    assert "\n" not in str(raised.value)


def test_progress_is_the_furthest_of_the_clients_bars_of_bytes() -> None:
    lines: list[str] = []
    bar_class = _progress_bar(lines.append)
    with (
        bar_class(total=12, unit="it") as files,
        bar_class(total=0, unit="B") as network,
        bar_class(total=0, unit="B") as disk,
    ):
        network.total = disk.total = 98_000_000
        disk.update(98_000_000)
        files.update(1)
        network.update(40_000_000)
    assert lines == ["fetching weights: 98 of 98 MB"]
