"""What a valid registry entry asks for that this version of Aviary does not execute yet.

A pure function of the entry. The manager calls it before it deploys a model and refuses the model by these names, so
that nothing in a file is ever silently ignored. When a part learns to execute a key, its line here goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from model_registry.schema import AutoscalingConfig, RegistryEntry, SingleDevice

EXECUTED_INITIALIZERS: Final = ("SingleDevice", "LlamaCpp", "Echo")
_REPLICA_COUNTS: Final = frozenset(("min_replicas", "initial_replicas", "max_replicas"))
_AUTOSCALING: Final = "deployment_config.autoscaling_config"
_ACTOR_OPTIONS: Final = "deployment_config.ray_actor_options"
_INITIALIZATION: Final = "model_config.initialization"
_REFUSED_LOADER_ARGUMENTS: Final[Mapping[str, str]] = {
    "attn_implementation": "paged attention is always used; remove it",
    "quantization_config": "quantized loading is not executed yet; remove it",
    "cache_dir": "is not executed; set HF_HOME in the workers' environment instead",
    "force_download": "is not executed; remove the repository from the cache with `hf cache rm` instead",
    "proxies": "is not executed; set HTTPS_PROXY in the workers' environment instead",
    "code_revision": "is not executed; use revision",
}
_HUB_ARGUMENTS: Final = ("revision", "token", "local_files_only")


def unsupported_keys(entry: RegistryEntry) -> list[str]:
    """One line per key, `key.path: reason and next step`; empty when everything the entry says is executed."""
    return [f"{key}: {reason}" for key, reason in _unsupported(entry)]


def _unsupported(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    yield from _unsupported_autoscaling(entry.deployment.autoscaling_config)
    yield from _unsupported_actor_options(entry)
    yield from _unsupported_initialization(entry)
    yield from _unsupported_source(entry)
    if entry.scaling.num_workers > 1:
        reason = f"{entry.scaling.num_workers} workers per replica are not run yet; set it to 1"
        yield "scaling_config.num_workers", reason


def _unsupported_autoscaling(autoscaling: AutoscalingConfig) -> Iterator[tuple[str, str]]:
    """The number of replicas is fixed; whatever would make it follow the load is refused."""
    if autoscaling.min_replicas != autoscaling.max_replicas:
        yield (
            f"{_AUTOSCALING}.max_replicas",
            f"replicas do not follow the load yet ({autoscaling.min_replicas} to {autoscaling.max_replicas} asked "
            "for); set min_replicas = max_replicas",
        )
    for key in type(autoscaling).model_fields:
        if key in autoscaling.model_fields_set and key not in _REPLICA_COUNTS:
            yield (
                f"{_AUTOSCALING}.{key}",
                "has no effect on a fixed number of replicas; remove it and set min_replicas = max_replicas",
            )


def _unsupported_actor_options(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    options = entry.deployment.ray_actor_options
    if options.accelerator_type is not None:
        yield f"{_ACTOR_OPTIONS}.accelerator_type", "is not executed yet; pin the node by a custom resource"
    if options.runtime_env is not None:
        yield f"{_ACTOR_OPTIONS}.runtime_env", "is not executed yet; install what it names on the nodes"


def _unsupported_initialization(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    initialization = entry.model.initialization
    initializer = initialization.initializer
    if initialization.runtime_env is not None:
        yield f"{_INITIALIZATION}.runtime_env", "is not executed yet; install what it names on the nodes"
    if initialization.s3_mirror_config is not None:
        reason = "is not executed yet; let the weights come from Hugging Face or from a folder (`hf_model_id`)"
        yield f"{_INITIALIZATION}.s3_mirror_config", reason
    if initializer.type not in EXECUTED_INITIALIZERS:
        reason = f"{initializer.type} is not executed yet; use {' or '.join(EXECUTED_INITIALIZERS)}"
        yield f"{_INITIALIZATION}.initializer.type", reason
    if getattr(initializer, "torch_compile", None) is not None:
        yield f"{_INITIALIZATION}.initializer.torch_compile", "is not executed yet; remove it to run eagerly"


def _unsupported_source(entry: RegistryEntry) -> Iterator[tuple[str, str]]:
    """What the worker would refuse only after its placement, and then again at every attempt."""
    initialization = entry.model.initialization
    initializer, package = initialization.initializer, initialization.python_package
    given = {"hf_model_id": initialization.hf_model_id, "python_package": package}
    if initializer.type == "Echo":
        for key in (key for key, value in given.items() if value is not None):
            yield f"{_INITIALIZATION}.{key}", "means nothing for Echo, which loads no weights; remove it"
    elif None not in given.values():
        yield f"{_INITIALIZATION}.hf_model_id", "contradicts python_package; keep one of them"
    if isinstance(initializer, SingleDevice):
        is_hub = package is None and not PurePosixPath(initialization.hf_model_id or entry.model_id).is_absolute()
        yield from _unsupported_arguments(initializer, is_hub=is_hub)


def _unsupported_arguments(initializer: SingleDevice, *, is_hub: bool) -> Iterator[tuple[str, str]]:
    for name in initializer.from_pretrained_kwargs:
        key = f"{_INITIALIZATION}.initializer.from_pretrained_kwargs.{name}"
        if name in _REFUSED_LOADER_ARGUMENTS:
            yield key, _REFUSED_LOADER_ARGUMENTS[name]
        elif name in _HUB_ARGUMENTS and not is_hub:
            yield key, "means nothing for weights that are not fetched from the Hugging Face Hub; remove it"
