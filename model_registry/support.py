"""What a valid registry entry asks for that this version of Aviary does not execute yet.

A pure function of the entry. The manager calls it before it deploys a model and refuses the model by these names, so
that nothing in a file is ever silently ignored. When a part learns to execute a key, its line here goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from model_registry.schema import DeepSpeed, DeviceMap, Embedding, RegistryEntry, SingleDevice

_INITIALIZATION: Final = "model_config.initialization"
_REFUSED_LOADER_ARGUMENTS: Final[Mapping[str, str]] = {
    "attn_implementation": "paged attention is always used; remove it",
    "quantization_config": "quantized loading is not executed yet; remove it",
    "cache_dir": "is not executed; set HF_HOME in the workers' environment instead",
    "force_download": "is not executed; remove the repository from the cache with `hf cache rm` instead",
    "proxies": "is not executed; set HTTPS_PROXY in the workers' environment instead",
    "code_revision": "is not executed; use revision",
}
_SOURCES: Final = ("hf_model_id", "s3_mirror_config", "gcs_mirror_config", "python_package")
_HUB_ARGUMENTS: Final = ("revision", "token", "local_files_only")


def unsupported_keys(entry: RegistryEntry) -> list[str]:
    """One line per key, `key.path: reason and next step`; empty when everything the entry says is executed."""
    return [f"{key}: {reason}" for key, reason in _unsupported(entry)]


def _unsupported(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    yield from _unsupported_source(entry)
    yield from _unsupported_embedding(entry)


def _unsupported_embedding(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    initializer = entry.model.initialization.initializer
    embedding = entry.model.embedding
    if initializer.type == "Echo" and embedding.pooling is not None:
        yield "model_config.embedding.pooling", "means nothing for Echo, which has nothing to pool; remove it"
    if isinstance(initializer, DeepSpeed) and embedding != Embedding():
        yield "model_config.embedding", "is not executed by DeepSpeed, whose ranks make no embeddings; remove it"


def _unsupported_source(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    """What the worker would refuse only after its placement, and then again at every attempt."""
    initialization = entry.model.initialization
    initializer = initialization.initializer
    given = [key for key in _SOURCES if getattr(initialization, key) is not None]
    if initializer.type == "Echo":
        for key in given:
            yield f"{_INITIALIZATION}.{key}", "means nothing for Echo, which loads no weights; remove it"
    elif {"hf_model_id", "python_package"} <= set(given):
        yield f"{_INITIALIZATION}.hf_model_id", "contradicts python_package; keep one of them"
    if isinstance(initializer, SingleDevice | DeviceMap | DeepSpeed):
        is_folder = PurePosixPath(initialization.hf_model_id or entry.model_id).is_absolute()
        is_hub = not is_folder and set(given) <= {"hf_model_id"}
        yield from _unsupported_arguments(initializer, is_hub=is_hub)


def _unsupported_arguments(
    initializer: SingleDevice | DeviceMap | DeepSpeed, *, is_hub: bool
) -> Iterator[tuple[str, str]]:
    for name in initializer.from_pretrained_kwargs:
        key = f"{_INITIALIZATION}.initializer.from_pretrained_kwargs.{name}"
        if name in _REFUSED_LOADER_ARGUMENTS:
            yield key, _REFUSED_LOADER_ARGUMENTS[name]
        elif name in _HUB_ARGUMENTS and not is_hub:
            yield key, "means nothing for weights that are not fetched from the Hugging Face Hub; remove it"
