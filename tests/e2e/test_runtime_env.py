"""Packages of a runtime environment, over the whole system: installed for one model, or named where they cannot be.

Ray copies the Python environment it runs in for each list of requirements. So the server runs in a small one here,
which finds everything else in this one; then a copy takes seconds. What the worker's process has is told by itself:
Python imports `sitecustomize` from the working directory when it starts.
"""

from __future__ import annotations

import json
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server, echo_entry, write_registry

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
DISTRIBUTION, VERSION = "toposort", "1.10"
"""Tiny, pure Python, and nothing that Aviary needs."""
WITNESS = """\
import json, os, sys, sysconfig
from importlib import metadata
from pathlib import Path

if "default_worker.py" in " ".join(sys.orig_argv):
    import toposort

    seen = {"version": metadata.version("toposort"), "greeting": os.environ["GREETING"], "file": toposort.__file__}
    Path(os.environ["SEEN"]).write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def small_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of its own that finds the packages of this one."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=True, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "everything.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return folder / "bin" / "python"


def entry_with(model_id: str, **runtime_env: Any) -> dict[str, Any]:
    entry = echo_entry(model_id)
    entry["model_config"]["initialization"]["runtime_env"] = runtime_env
    return entry


def test_packages_are_there_for_the_worker_or_the_model_says_which_cannot_be_had(
    start: Callable[..., Server], small_python: Path, tmp_path: Path
) -> None:
    seen = {installer: tmp_path / f"{installer}.json" for installer in ("pip", "uv")}
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(WITNESS)
    good = [
        entry_with(
            f"tests/{installer}",
            **{installer: [f"{DISTRIBUTION}=={VERSION}"]},
            working_dir=str(code),
            env_vars={"GREETING": installer, "SEEN": str(path)},
        )
        for installer, path in seen.items()
    ]
    bad = entry_with("tests/bad", pip=[f"{DISTRIBUTION}==0.0.0.dev404"])
    server = start(
        ready=False,
        python=str(small_python),
        AVIARY_REGISTRY=str(write_registry(tmp_path / "registry", *good, bad)),
        RUNTIME_ENV_RETRY_TIMES="1",
    )
    server.wait_until(lambda: all(server.model(f"tests/{installer}")["state"] == "ready" for installer in seen), 240)
    for installer, path in seen.items():
        told = json.loads(path.read_text())
        assert (told["version"], told["greeting"]) == (VERSION, installer)
        assert f"/runtime_resources/{installer}/" in told["file"]
    with server.client as client:
        reply = client.completions.create(model="tests/pip", prompt="hello")
    assert reply.choices[0].text == "hello"
    server.wait_until(lambda: "cannot be set up" in (server.model("tests/bad")["reason"] or ""), 120)
    assert f"No matching distribution found for {DISTRIBUTION}==0.0.0.dev404" in server.model("tests/bad")["reason"]
    names = subprocess.run([small_python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert DISTRIBUTION not in names.split(), "what one model needs is installed for that one only"
