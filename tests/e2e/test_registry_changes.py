"""A registry that changes while it is served: the folder is what runs, and a bad file changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.conftest import Server

ADMIN_KEY = "an admin key of some length"
ECHO = """\
model_config:
  model_id: test/{name}
  initialization:
    initializer:
      type: Echo
  generation:
    stopping_sequences: [{stops}]
scaling_config:
  num_gpus_per_worker: 0
  num_cpus_per_worker: 0
"""


class Folder:
    """A registry of echo models."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, stops: str = "") -> None:
        self._file(name).write_text(ECHO.format(name=name, stops=stops))

    def delete(self, name: str) -> None:
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        return self.path / f"test--{name}.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made = Folder(tmp_path_factory.mktemp("registry"))
    made.write("one")
    return made


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], folder: Folder) -> Server:
    return start(AVIARY_REGISTRY=str(folder.path), AVIARY_ADMIN_KEY=ADMIN_KEY)


def answer(server: Server, name: str) -> str:
    with server.client as client:
        return client.completions.create(model=f"test/{name}", prompt="hello", max_tokens=8).choices[0].text


def test_a_saved_file_takes_effect_in_the_model_that_runs(server: Server, folder: Folder) -> None:
    assert answer(server, "one") == "hello"
    folder.write("one", stops="l")
    server.wait_until(lambda: answer(server, "one") == "he", 20)
    assert "test/one: has new settings" in server.output


def test_a_new_file_is_a_new_model_and_its_progress_is_shown(server: Server, folder: Folder) -> None:
    folder.write("two")
    server.wait_until(lambda: "test/two: ready" in server.output, 30)
    assert answer(server, "two") == "hello"
    assert "test/two: added" in server.output


def test_a_bad_file_changes_nothing_and_is_named(server: Server, folder: Folder) -> None:
    folder.write("two", stops="l")
    (folder.path / "test--bad.yaml").write_text("model_config: {model_id: test/bad}")
    server.wait_until(lambda: "what runs goes on as before" in server.output, 20)
    assert "test--bad.yaml" in server.output
    assert answer(server, "two") == "hello"
    refused = reload(server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_registry")
    assert "test--bad.yaml" in refused.json()["error"]["message"]
    (folder.path / "test--bad.yaml").unlink()
    server.wait_until(lambda: answer(server, "two") == "he", 20)


def test_a_deleted_file_takes_its_model_along(server: Server, folder: Folder) -> None:
    folder.delete("two")
    server.wait_until(lambda: "test/two: removed" in server.output, 20)
    with pytest.raises(openai.NotFoundError):
        answer(server, "two")
    assert answer(server, "one") == "he"


def test_a_reload_may_be_asked_for_with_the_admin_key_only(server: Server, folder: Folder) -> None:
    assert reload(server, key=None).status_code == 401
    wrong = reload(server, key="not the key, but as long")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    folder.write("three")
    told = reload(server)
    assert told.status_code == 200
    assert "test/one" in told.json()["unchanged"]
    server.wait_until(lambda: "test/three: ready" in server.output, 30)


def reload(server: Server, key: str | None = ADMIN_KEY) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/admin/reload", headers=headers, timeout=30)
