"""SingleDevice: the whole model on one GPU, or on the CPU when the replica has no GPU."""

from __future__ import annotations

from model_registry.schema import RegistryEntry, SingleDevice
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
from workers.runners.packed_linear import pack_linears
from workers.sources import default_cache_dir, fetch_model


class SingleDeviceInitializer:
    """Loads one model onto one device."""

    def load(self, entry: RegistryEntry, progress: Progress) -> LoadedModel:
        settings = entry.model.initialization.initializer
        if not isinstance(settings, SingleDevice):
            raise TypeError(f"SingleDeviceInitializer cannot load {settings.type}")
        device = prepare_process(entry, settings)
        folder = fetch_model(entry.model, default_cache_dir(), progress)
        progress("loading weights")
        if only_embeds(load_config(folder, settings)):
            return load_encoder(folder, entry, settings, progress, device_map={"": device})
        model = load_weights(folder, settings).to(device)
        tokenizer = load_tokenizer(folder, model, settings)
        return build_loaded_model(
            model,
            tokenizer,
            settings,
            entry.model.generation,
            progress,
            shape=vector_shape(folder, entry.model.embedding),
            prepare=lambda: pack_linears(model),
        )
