"""Environments for other people's programs, each its own: installed once per machine, from the lists in tests/clients.

They must not share this project's environment, whose versions theirs would change, the openai client's first of all.
Tests that run such programs use this.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import uv

from workers.sources.cache import default_cache_dir, partial_folder
from workers.sources.lock import file_lock

LISTS = Path(__file__).parents[1] / "clients"
INSTALL_TIMEOUT_S = 300.0
NODE = "node"


def python_environment(name: str) -> Path:
    """The folder of programs of a virtual environment that has what `<name>.txt` lists."""
    requirements = LISTS / f"{name}.txt"

    def install(folder: Path) -> None:
        _run(uv.find_uv_bin(), "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder / "venv"))
        python = folder / "venv" / "bin" / "python"
        _run(uv.find_uv_bin(), "pip", "sync", "--quiet", "--python", str(python), str(requirements))

    return _installed(name, (requirements,), install) / "venv" / "bin"


def node_modules() -> Path:
    """The folder of what `package-lock.json` lists. Node.js itself comes from the `node` environment."""
    lists = (LISTS / "package.json", LISTS / "package-lock.json")
    programs = python_environment(NODE)

    def install(folder: Path) -> None:
        for one in lists:
            shutil.copy(one, folder)
        _run("npm", "ci", "--no-audit", "--no-fund", "--prefix", str(folder), programs=programs)

    return _installed("node_modules", lists, install) / "node_modules"


def with_programs(programs: Path) -> dict[str, str]:
    """The variables of a process that finds these programs before any others."""
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def _installed(name: str, lists: tuple[Path, ...], install: Callable[[Path], None]) -> Path:
    """The folder where `install` has put what is listed: whole, and anew when a list or this Python changes."""
    contents = b"\0".join([sys.version.encode(), *(one.read_bytes() for one in lists)])
    parent = default_cache_dir() / "test-clients"
    folder = parent / f"{name}-{hashlib.sha256(contents).hexdigest()[:16]}"
    with file_lock(parent / f"{name}.lock", f"installing {name}", print):
        if not folder.exists():
            with partial_folder(folder) as partial:
                install(partial)
    return folder


def _run(*command: str, programs: Path | None = None) -> None:
    variables = None if programs is None else with_programs(programs)
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stderr}"
