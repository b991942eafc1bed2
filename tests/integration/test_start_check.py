"""What keeps a gateway from starting is told before anything is started, in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parallel

COMMANDS = (("gateway",), ("gateway", "--workers=2"), ("serve",))


def started(command: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aviary", *command],
        env={**os.environ, "AVIARY_PORT": "0", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("setting", "store"), [("AVIARY_RESPONSES_STORE", "responses.db"), ("AVIARY_FILES", ".")])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_no_store_is_one_clear_line(
    command: tuple[str, ...], setting: str, store: str, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("responses.db", "files.db")]
    for file in files:
        file.write_text("precious " * 100)
    result = started(command, **{setting: str(tmp_path / store)})
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert f"{setting} cannot be used: {tmp_path}" in line
    assert ".db: file is not a database; name another place or unset it" in line
    assert [file.read_text() for file in files] == ["precious " * 100] * 2


@pytest.mark.parametrize("command", COMMANDS)
def test_a_taken_port_is_one_clear_line(command: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = started(command, AVIARY_PORT=str(taken.getsockname()[1]))
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert "address already in use; set AVIARY_PORT" in line
