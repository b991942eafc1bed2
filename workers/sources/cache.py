"""The folder where fetched and converted weights stay: where it is, and how things appear in it whole or not at all.

    files/<sha256>/<name>        files as they were published, verified
    converted/<sha256>-v<n>/     Hugging Face folders made from them
    locks/                       one lock per thing above

Knows no source. Used by the sources that keep something; the Hugging Face Hub has a cache of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import SourceError
from workers.sources.progress import MEGABYTE, ByteProgress, Progress

CACHE_DIR_VARIABLE = "AVIARY_CACHE_DIR"
READ_BYTES = 1 << 20


def default_cache_dir() -> Path:
    """`$AVIARY_CACHE_DIR`, else `~/.cache/aviary`."""
    configured = os.environ.get(CACHE_DIR_VARIABLE)
    return Path(configured).expanduser().absolute() if configured else Path.home() / ".cache" / "aviary"


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder for the block's own use. The caller holds a lock; what a killed process left is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target`, replacing an older one, when the block ends well."""
    with scratch_folder(target.with_name(f"{target.name}.partial")) as partial:
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)


def require_free_space(folder: Path, num_bytes: int, act: str) -> None:
    """Raises `SourceError` before a write that cannot fit rather than in the middle of it."""
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise SourceError(
            f"{act} needs {num_bytes // MEGABYTE} MB in {folder}, {free_bytes // MEGABYTE} MB are free; "
            f"free some space or set {CACHE_DIR_VARIABLE} to a larger disk"
        )


def sha256_of(path: Path, progress: Progress) -> str:
    """Checksum of a file, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    counter = ByteProgress(progress, "verifying weights", path.stat().st_size)
    num_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
            counter.reached(num_bytes)
    return digest.hexdigest()
