"""deploy/Dockerfile: the order of its layers, its user, and what reaches the build."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from model_registry.loader import ZOO

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "deploy"
IGNORE: Final = FOLDER / "Dockerfile.dockerignore"


def stages() -> dict[str, list[str]]:
    """The instructions of each stage, continued lines joined."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    name = ""
    for line in (line.strip() for line in text.splitlines()):
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            name = match[1]
            found[name] = []
        elif line and not line.startswith("#") and name:
            found[name].append(re.sub(r"\s+", " ", line))
    return found


def position(instructions: list[str], pattern: str) -> int:
    (index,) = [number for number, line in enumerate(instructions) if re.search(pattern, line)]
    return index


@pytest.mark.parametrize("image", ["control", "worker"])
def test_each_image_runs_as_a_user_by_number(image: str) -> None:
    users = [line for line in stages()[image] if line.startswith("USER")]
    assert users == ["USER 10001:10001"]
    assert "useradd --uid 10001" in " ".join(stages()["base"])


@pytest.mark.parametrize("image", ["control", "worker"])
def test_a_change_of_code_installs_no_package_again(image: str) -> None:
    lines = stages()[image]
    code = position(lines, r"^COPY \. \.$")
    packages = position(lines, r"--only-deps")
    assert packages < code < position(lines, r"^RUN pip install --no-deps \.$")
    assert not any(line.startswith("COPY") and " . " in line for line in stages()["base"])


def test_torch_comes_before_the_other_packages_and_alone() -> None:
    lines = stages()["worker"]
    torch = position(lines, r"pip install torch")
    assert torch < position(lines, r"--only-deps")
    assert lines[torch].count("pip install torch -c constraints.txt") == 2


@pytest.mark.parametrize(("image", "extras"), [("control", "gateway"), ("worker", "workers,deepspeed,llama,s3,gcs")])
def test_the_extras_it_installs_exist(image: str, extras: str) -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(offered)
    assert any(f"'.[{extras}]'" in line for line in stages()[image])


def test_nothing_is_installed_into_a_virtual_environment() -> None:
    assert "venv" not in " ".join(line for lines in stages().values() for line in lines)


@pytest.mark.parametrize("image", ["control", "worker"])
def test_the_scripts_of_the_compose_file_are_in_both_images(image: str) -> None:
    assert "COPY deploy/ray-node deploy/with-ray-node /usr/local/bin/" in stages()[image]
    for name in ("ray-node", "with-ray-node", "make-secrets"):
        assert (FOLDER / name).stat().st_mode & 0o111, f"{name} cannot be run"


def test_only_what_the_images_need_reaches_the_build() -> None:
    rules = [line for line in IGNORE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"bench", "tests"}
    assert packages <= allowed
    assert ZOO.name in allowed
    assert not any(path.startswith("deploy/secrets") or path == "deploy" for path in allowed)
    assert all((ROOT / path).exists() for path in allowed)
