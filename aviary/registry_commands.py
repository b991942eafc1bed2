"""The commands that read YAML: `models`, `schema` and `validate`. Only `validate --cluster` asks anybody else: Ray."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from aviary.errors import CommandError
from aviary.settings import DeploySettings
from model_registry.loader import RegistryError, load_entry, load_registry
from model_registry.problems import Problem
from model_registry.schema import RegistryEntry, ScalingConfig
from model_registry.support import unsupported_keys
from model_registry.tables import JSON_SCHEMA
from workers.pool.capacity import fit_of
from workers.pool.placement import Node


async def models(arguments: argparse.Namespace) -> int:
    """What the registry offers, one model per line: its id, how it is loaded, and what one replica runs on."""
    registry = DeploySettings.load(registry=arguments.registry).read_registry()
    rows = [_row(entry) for entry in registry.entries.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


async def schema(arguments: argparse.Namespace) -> int:
    """The JSON schema of a registry file, for editors and other checkers."""
    print(JSON_SCHEMA.read_text(encoding="utf-8"), end="")
    return 0


async def validate(arguments: argparse.Namespace) -> int:
    """Every problem of files and folders, then what a cluster lacks for them. Raises `CommandError` for either."""
    problems: list[Problem] = []
    entries: list[RegistryEntry] = []
    for path in arguments.paths:
        try:
            found = await asyncio.to_thread(_entries_of, path)
        except RegistryError as error:
            problems += error.problems
        else:
            entries += found
            print(f"{path}: {len(found)} valid model{'' if len(found) == 1 else 's'}")
    for entry in entries:
        for line in unsupported_keys(entry):
            print(f"note: {entry.model_id} would be refused at deployment: {line}")
    if problems:
        raise CommandError(str(RegistryError(dict.fromkeys(problems))))
    if arguments.cluster or arguments.address:
        _compare(entries, await _nodes(arguments.address))
    return 0


def _row(entry: RegistryEntry) -> tuple[str, str, str, str]:
    refused = len(unsupported_keys(entry))
    keys = "1 key is" if refused == 1 else f"{refused} keys are"
    note = f"(cannot be deployed yet: {keys} not executed)" if refused else ""
    return entry.model_id, entry.model.initialization.initializer.type, _hardware(entry.scaling), note


def _hardware(scaling: ScalingConfig) -> str:
    num_gpus = scaling.num_workers * scaling.num_gpus_per_worker
    if num_gpus:
        return f"{num_gpus:g} GPU{'s' if num_gpus > 1 else ''}"
    num_cpus = scaling.num_workers * scaling.num_cpus_per_worker
    return f"{num_cpus:g} CPU{'' if num_cpus == 1 else 's'}"


def _entries_of(path: Path) -> list[RegistryEntry]:
    if path.is_dir():
        registry = load_registry(path)
        return [*registry.entries.values(), *registry.disabled.values()]
    return [load_entry(path)]


async def _nodes(address: str | None) -> list[Node]:
    """The living nodes of the cluster; joins it, changes nothing, leaves it. Raises `UsageError`."""
    from aviary.ray_cluster import RayCluster  # only here: the other commands run without Ray
    from workers.pool.ray_host import living_nodes

    cluster = await RayCluster.join(address or DeploySettings.load().ray_address or "auto")
    try:
        return await asyncio.to_thread(living_nodes)
    finally:
        await cluster.close()


def _compare(entries: Sequence[RegistryEntry], nodes: Sequence[Node]) -> None:
    """Say for each model what the cluster has room for. Raises `CommandError` when a model does not fit."""
    lacking = []
    for entry in entries:
        fit = fit_of(entry, nodes)
        print(f"{entry.model_id}: {fit}")
        if not fit.is_enough and entry.enabled:
            lacking.append(entry.model_id)
    if lacking:
        raise CommandError(f"this cluster is too small for {', '.join(lacking)}")
