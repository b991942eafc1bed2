"""Keeps a pool what a folder of files says: at every change of the folder, or whenever somebody asks.

A folder that cannot be read as a registry changes nothing: what runs goes on, and the reasons are reported. Used by
`serve` and `deploy --watch`, and by gateways for `POST /admin/reload`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import watchfiles

from aviary.errors import UsageError
from aviary.settings import DeploySettings
from gateway.errors import RegistryRefusedError
from model_registry.loader import ZOO, RegistryError
from model_registry.naming import REGISTRY_SUFFIXES
from model_registry.schema import RegistryEntry
from workers.pool.errors import PoolError
from workers.pool.state import Applied

Deploy = Callable[[Sequence[RegistryEntry]], Awaitable[Applied]]
"""Makes a pool what these entries say. Raises `PoolError`, and then has changed nothing."""

QUIET_MS: Final = 300
"""A folder is read once nothing in it changed for so long: editors and tools write a file in several steps."""
_WORDS: Final = {
    "added": "added",
    "replaced": "gets new replicas",
    "reconfigured": "has new settings",
    "removed": "removed",
}


class RegistryFollower:
    """One folder, and the way to a pool."""

    def __init__(self, settings: DeploySettings, deploy: Deploy) -> None:
        self._settings = settings
        self._deploy = deploy
        self._deploying = asyncio.Lock()

    async def reload(self) -> Applied:
        """Read the folder and deploy what it says. Raises `RegistryError`, `UsageError` or `PoolError`."""
        async with self._deploying:
            entries = await asyncio.to_thread(lambda: self._settings.select(self._settings.read_registry()))
            return await self._deploy(entries)

    async def reload_for_gateway(self) -> Mapping[str, Sequence[str]]:
        """The same for a client. Raises `RegistryRefusedError`."""
        try:
            applied = await self.reload()
        except (RegistryError, UsageError, PoolError) as error:
            raise RegistryRefusedError(f"Nothing was changed. {error}") from None
        outcomes: dict[str, list[str]] = msgspec.to_builtins(applied)
        return outcomes

    async def watch(self) -> None:
        """Follow the folder for ever, and say on standard output what each change came to."""
        folder = self._settings.registry or ZOO
        async for _ in watchfiles.awatch(
            folder, watch_filter=_is_registry_file, debounce=10 * QUIET_MS, step=QUIET_MS, recursive=False
        ):
            try:
                lines = lines_about(await self.reload())
            except (RegistryError, UsageError, PoolError) as error:
                lines = [f"{folder} changed, but cannot be deployed; what runs goes on as before:", str(error)]
            print("\n".join(lines), end="\n" if lines else "", flush=True)


def lines_about(applied: Applied) -> list[str]:
    """One line per model that is not as it was."""
    outcomes: dict[str, list[str]] = msgspec.to_builtins(applied)
    return [f"{model_id}: {words}" for outcome, words in _WORDS.items() for model_id in outcomes[outcome]]


def _is_registry_file(_change: watchfiles.Change, path: str) -> bool:
    name = Path(path).name
    return not name.startswith(".") and name.endswith(tuple(REGISTRY_SUFFIXES))
