"""DeviceMap: the model's layers spread over the devices of one worker by accelerate, those that do not fit offloaded.

Weights kept on the CPU or on disk are brought to a device for each step; every layer's KV cache stays on the device
that computes the layer.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from model_registry.schema import DeviceMap, RegistryEntry
from workers.initializers.base import LoadedModel, Progress
from workers.initializers.causal_lm import (
    build_loaded_model,
    load_config,
    load_tokenizer,
    load_weights,
    prepare_process,
    vector_shape,
)
from workers.initializers.encoder import load_encoder, only_embeds
from workers.sources import default_cache_dir, fetch_model


class DeviceMapInitializer:
    """Loads one model onto several devices."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel:
        settings = entry.model.initialization.initializer
        if not isinstance(settings, DeviceMap):
            raise TypeError(f"DeviceMapInitializer cannot load {settings.type}")
        prepare_process(entry, settings)
        cache_dir = default_cache_dir()
        folder = fetch_model(entry.model, cache_dir, progress)
        progress("loading weights")
        if only_embeds(load_config(folder, settings)):
            return load_encoder(folder, entry, settings, progress, device_map=settings.device_map)
        model = load_weights(folder, settings, **_placement(settings, cache_dir / "offload" / folder.name))
        progress(f"layers placed: {_placed(model)}")
        tokenizer = load_tokenizer(folder, model, settings)
        return build_loaded_model(
            model,
            tokenizer,
            settings,
            entry.model.generation,
            progress,
            shape=vector_shape(folder, entry.model.embedding),
        )


def _placement(settings: DeviceMap, offload_folder: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained`, with what the registry does not say left to accelerate."""
    placement: dict[str, Any] = {"device_map": settings.device_map, "offload_folder": offload_folder}
    if settings.max_memory is not None:
        placement["max_memory"] = settings.max_memory
    return placement


def _placed(model: Any) -> str:
    """Such as `17 on cuda:0, 15 on cpu`."""
    devices = getattr(model, "hf_device_map", {"": model.device})  # absent where one device takes everything
    counts = Counter(str(device) for device in devices.values())
    return ", ".join(f"{count} on {device}" for device, count in counts.items())
