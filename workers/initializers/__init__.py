"""How a model is loaded, one class per `initializer.type` of the registry."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from model_registry.schema import RegistryEntry
from workers.errors import UnsupportedModelError
from workers.initializers.base import Initializer, build_engine

__all__ = ["build_engine", "initializer_for"]

INITIALIZERS = {
    "SingleDevice": "workers.initializers.single_device:SingleDeviceInitializer",
    "LlamaCpp": "workers.initializers.llama_cpp:LlamaCppInitializer",
    "Echo": "workers.initializers.echo:EchoInitializer",
}
"""Type → module:class; a module is imported only where its type is used, so a worker needs only that one's packages."""


def initializer_for(entry: RegistryEntry) -> Initializer:
    """The initializer that the entry names. Raises `UnsupportedModelError`."""
    name = entry.model.initialization.initializer.type
    if name not in INITIALIZERS:
        raise UnsupportedModelError(f"initializer {name} is not available; available: {', '.join(INITIALIZERS)}")
    module, _, class_name = INITIALIZERS[name].partition(":")
    return cast("Initializer", getattr(import_module(module), class_name)())
