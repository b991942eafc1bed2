"""How a model is loaded, one class per `initializer.type` of the registry."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from model_registry.schema import RegistryEntry
from workers.errors import UnsupportedModelError
from workers.group import LeaderGroup, RankGroup
from workers.initializers.base import Initializer, build_engine

__all__ = ["build_engine", "initializer_for"]

INITIALIZERS = {
    "SingleDevice": "workers.initializers.single_device:SingleDeviceInitializer",
    "DeviceMap": "workers.initializers.device_map:DeviceMapInitializer",
    "LlamaCpp": "workers.initializers.llama_cpp:LlamaCppInitializer",
    "Echo": "workers.initializers.echo:EchoInitializer",
}
"""Type → module:class; a module is imported only where its type is used, so a worker needs only that one's packages."""
GROUP_INITIALIZERS = {"DeepSpeed": "workers.initializers.deepspeed:DeepSpeedInitializer"}
"""Likewise, of models that several ranks load together; each rank's is given its group."""


def initializer_for(entry: RegistryEntry, group: RankGroup | None = None) -> Initializer:
    """The initializer that the entry names; without a group, the process is the only rank.

    Raises `UnsupportedModelError`.
    """
    name = entry.model.initialization.initializer.type
    if name in GROUP_INITIALIZERS:
        return cast("Initializer", _class_at(GROUP_INITIALIZERS[name])(group or LeaderGroup("127.0.0.1")))
    if name in INITIALIZERS:
        return cast("Initializer", _class_at(INITIALIZERS[name])())
    available = ", ".join((*INITIALIZERS, *GROUP_INITIALIZERS))
    raise UnsupportedModelError(f"initializer {name} is not available; available: {available}")


def _class_at(place: str) -> Any:
    module, _, class_name = place.partition(":")
    return getattr(import_module(module), class_name)
