"""The Hub's real client against a small server that speaks as much of the Hub's API as a download needs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.parallel

COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights!" * 400_000,
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"raise SystemExit",
    "model.Q4_0.gguf": b"GGUF" * 500_000,
}
FETCH_PROGRAM = """
import json, sys
from workers.errors import SourceError
from workers.sources.hugging_face import fetch_file, fetch_snapshot

wanted = json.loads(sys.argv[2])
fetch = fetch_file if isinstance(wanted, str) else fetch_snapshot
try:
    print(fetch(sys.argv[1], wanted, lambda line: print(line, flush=True)))
except SourceError as error:
    print(f"refused: {error}")
"""

FETCH_MODEL_PROGRAM = """
import sys
from pathlib import Path
from model_registry.schema import ModelConfig
from workers.sources import fetch_model

print(fetch_model(ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), print))
"""


class HubHandler(BaseHTTPRequestHandler):
    """`org/model` has everything, `org/pickled` no safetensors, `org/gated` refuses, anything else does not exist."""

    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(path)
        if "org/model" in path:
            self.server.authorizations.add(self.headers.get("Authorization"))
        if "org/gated" in path:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "org/model" in path or "org/pickled" in path:
            self._answer_repository(path)
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _answer_repository(self, path: str) -> None:
        names = [name for name in FILES if "org/model" in path or not name.endswith(".safetensors")]
        if "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": oid(name)} for name in names]
            self._answer(200, json.dumps(tree).encode(), {})
        elif "/resolve/" in path:
            name = path.rsplit("/", 1)[1]
            if name not in names:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            self._answer(200, FILES[name], {"ETag": f'"{oid(name)}"', "X-Repo-Commit": COMMIT})
        elif path.endswith("/revision/nowhere"):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [{"rfilename": name} for name in names]
            self._answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


def oid(name: str) -> str:
    return hashlib.sha1(FILES[name]).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """The server, every path that was asked of it, and who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.requests: list[str] = []
        self.authorizations: set[str | None] = set()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def fetch(
    hub: FakeHub, home: Path, repository: str, arguments: dict[str, Any] | str | None = None, **more: str
) -> list[str]:
    """Lines that a fetch in a process of its own printed: progress, then the folder or the refusal."""
    return run(hub, home, [FETCH_PROGRAM, repository, json.dumps(arguments or {})], more)


def run(hub: FakeHub, home: Path, command: list[str], more: dict[str, str]) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", *command]
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_a_snapshot_is_fetched_with_progress_and_without_pickles_or_code(hub: FakeHub, tmp_path: Path) -> None:
    *progress, folder = fetch(hub, tmp_path, "org/model")
    assert sorted(path.name for path in Path(folder).iterdir()) == ["config.json", "model.safetensors"]
    assert (Path(folder) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert progress[0] == "fetching weights: org/model from the Hugging Face Hub"
    assert progress[-1] == "fetching weights: 3 of 3 MB"
    assert not any(path.endswith((".bin", ".py")) for path in hub.requests)


def test_code_is_fetched_where_the_registry_trusts_it(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, "org/model", {"trust_remote_code": True})[-1]
    assert (Path(folder) / "modeling.py").exists()


def test_a_fetched_snapshot_is_used_offline(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, "org/model")[-1]
    hub.requests.clear()
    assert fetch(hub, tmp_path, "org/model", HF_HUB_OFFLINE="1")[-1] == folder
    assert hub.requests == []


def test_the_token_is_the_registrys_or_else_the_environments(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path / "anonymous", "org/model")
    assert hub.authorizations == {None}
    hub.authorizations.clear()
    fetch(hub, tmp_path / "environment", "org/model", HF_TOKEN="hf_environment")
    assert hub.authorizations == {"Bearer hf_environment"}
    hub.authorizations.clear()
    fetch(hub, tmp_path / "registry", "org/model", {"token": "hf_registry"}, HF_TOKEN="hf_environment")
    assert hub.authorizations == {"Bearer hf_registry"}


def test_the_revision_is_what_is_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path, "org/model", {"revision": "v2"})
    assert "/api/models/org/model/revision/v2" in hub.requests
    hub.requests.clear()
    fetch(hub, tmp_path, "org/model")
    assert not any(path.endswith("/v2") for path in hub.requests)


def test_hf_model_id_says_what_is_fetched_and_hf_home_where_it_stays(hub: FakeHub, tmp_path: Path) -> None:
    initialization = {"hf_model_id": "org/model", "initializer": {"type": "SingleDevice"}}
    model = json.dumps({"model_id": "public/name", "initialization": initialization})
    folder = Path(run(hub, tmp_path / "home", [FETCH_MODEL_PROGRAM, model, str(tmp_path / "cache")], {})[-1])
    assert folder.is_relative_to(tmp_path / "home" / "hub" / "models--org--model")
    assert not any("public/name" in path for path in hub.requests)
    assert not (tmp_path / "cache").exists()


def test_a_cached_snapshot_is_used_without_asking_where_only_local_files_are_wanted(
    hub: FakeHub, tmp_path: Path
) -> None:
    folder = fetch(hub, tmp_path, "org/model")[-1]
    hub.requests.clear()
    assert fetch(hub, tmp_path, "org/model", {"local_files_only": True})[-1] == folder
    assert hub.requests == []


def test_one_file_is_fetched_without_the_others_and_found_again_offline(hub: FakeHub, tmp_path: Path) -> None:
    *progress, path = fetch(hub, tmp_path, "org/model", "model.Q4_0.gguf")
    assert Path(path).read_bytes() == FILES["model.Q4_0.gguf"]
    assert [entry.name for entry in Path(path).parent.iterdir()] == ["model.Q4_0.gguf"]
    assert progress[0] == "fetching weights: model.Q4_0.gguf of org/model from the Hugging Face Hub"
    assert progress[-1] == "fetching weights: 2 of 2 MB"
    assert fetch(hub, tmp_path, "org/model", "model.Q4_0.gguf", HF_HUB_OFFLINE="1")[-1] == path


@pytest.mark.parametrize(
    ("repository", "arguments", "refusal"),
    [
        ("org/none", {}, "the Hugging Face Hub has no org/none, or it is private: check the id, or set HF_TOKEN"),
        ("org/gated", {}, "org/gated is gated: accept its terms on its page, then set HF_TOKEN"),
        ("org/model", {"revision": "nowhere"}, "org/model has no revision 'nowhere'"),
        ("org/model", {"local_files_only": True}, "org/model is not completely in the cache"),
        ("org/pickled", {}, "org/pickled has no safetensors weights, and pickled weights are refused"),
        ("org/model", "other.gguf", "org/model has no file other.gguf; correct initializer.model_filename"),
        ("org/none", "x.gguf", "the Hugging Face Hub has no org/none, or it is private"),
        ("./models/mine", {}, "'./models/mine' is neither a Hugging Face id nor an absolute folder"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    hub: FakeHub, tmp_path: Path, repository: str, arguments: dict[str, Any] | str, refusal: str
) -> None:
    lines = fetch(hub, tmp_path, repository, arguments)
    assert lines[-1].startswith(f"refused: {refusal}")
