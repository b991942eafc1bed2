"""The commands that only read YAML: `models` and `validate`. No Ray, no gateway, no network."""

from __future__ import annotations

import argparse
from pathlib import Path

from aviary.errors import CommandError
from aviary.settings import DeploySettings
from model_registry.loader import RegistryError, load_entry, load_registry
from model_registry.schema import RegistryEntry
from model_registry.support import unsupported_keys


async def models(arguments: argparse.Namespace) -> int:
    """What the registry offers, one model per line."""
    registry = DeploySettings.load(registry=arguments.registry).read_registry()
    width = max(len(model_id) for model_id in registry.entries)
    for model_id, entry in registry.entries.items():
        refused = unsupported_keys(entry)
        note = f"  (cannot be deployed yet: {len(refused)} keys are not executed)" if refused else ""
        print(f"{model_id.ljust(width)}  {entry.model.initialization.initializer.type}{note}")
    return 0


async def validate(arguments: argparse.Namespace) -> int:
    """Every problem of a file or a folder. Raises `CommandError` when there is one."""
    try:
        entries = _entries_of(arguments.path)
    except RegistryError as error:
        raise CommandError(str(error)) from None
    for entry in entries:
        for line in unsupported_keys(entry):
            print(f"note: {entry.model_id} would be refused at deployment: {line}")
    print(f"{arguments.path}: {len(entries)} valid model{'' if len(entries) == 1 else 's'}")
    return 0


def _entries_of(path: Path) -> list[RegistryEntry]:
    if path.is_dir():
        registry = load_registry(path)
        return [*registry.entries.values(), *registry.disabled.values()]
    return [load_entry(path)]
