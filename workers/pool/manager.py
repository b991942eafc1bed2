"""The one detached actor that decides who lives where: registry entries in, replicas up, a picture for gateways.

Its wanted state and the secret are in the store, its replicas are named actors: a new manager process finds both and
goes on without restarting anything. Runs no model and imports no torch. Called by the command line (`client`) and,
for `watch` and `report`, by gateways.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

from msgspec import DecodeError
from msgspec.structs import replace

from model_registry.changes import Change, change_between
from model_registry.contract import MANAGER_NAME, LoadReport, PoolView
from model_registry.schema import RegistryEntry
from model_registry.support import unsupported_keys
from workers.pool.autoscaling import Autoscaler
from workers.pool.back_off import BackOff
from workers.pool.deployment import Deployment
from workers.pool.errors import PoolError
from workers.pool.ray_host import (
    LOG_FORMAT,
    RayHost,
    living_replicas,
    remove_replica,
    replica_name,
)
from workers.pool.replica import CALL_TIMEOUT_S
from workers.pool.room import RoomKeeper
from workers.pool.state import Applied, PoolOptions, PoolState, Revision, WantedModel
from workers.pool.store import delete_state, load_state, save_state

logger = logging.getLogger(__name__)

UNREADABLE_STATE: Final = (
    "what this pool remembers is of another release of Aviary and cannot be read ({reason}); run `aviary shutdown`, "
    "which removes the pool and all its replicas, then deploy again"
)

DECISION_PERIOD_S: Final = 0.25
"""Between two decisions about the number of a model's replicas."""

T = TypeVar("T")


class PoolManager:
    """Desired state, and the deployments that make it true."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        self._state = PoolState(secret=secrets.token_urlsafe(32))
        self._deployments: dict[str, Deployment] = {}
        self._scalers: dict[str, Autoscaler] = {}
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._applying = asyncio.Lock()
        self._closed = False
        self._recovery = asyncio.create_task(self._recover(), name="pool-recovery")
        self._loops: tuple[asyncio.Task[None], ...] = ()
        self._note_change()

    async def apply(self, entries: Sequence[RegistryEntry], options: PoolOptions | None = None) -> Applied:
        """Make exactly these models the deployed ones. Raises `PoolError`, and then has changed nothing."""
        async with self._applying:
            await self._ready()
            self._check_open()
            unwanted = set(self._wanted) - {entry.model_id for entry in entries}
            return await self._change(entries, unwanted, options)

    async def add(self, entries: Sequence[RegistryEntry], options: PoolOptions | None = None) -> Applied:
        """Deploy these, or bring them in line, and leave all other models alone. Raises `PoolError`, likewise."""
        async with self._applying:
            await self._ready()
            self._check_open()
            return await self._change(entries, (), options)

    async def remove(self, model_ids: Sequence[str]) -> None:
        """Remove these models, letting their requests finish first; ids that are not deployed are fine."""
        async with self._applying:
            await self._ready()
            await self._change((), set(model_ids) & set(self._wanted), None)
            removals = [self._removals[model_id] for model_id in model_ids if model_id in self._removals]
        await asyncio.gather(*removals)

    async def shutdown(self) -> None:
        """Remove every model and forget the pool; the caller then ends this actor."""
        async with self._applying:
            # Closed before the first wait: what is deployed meanwhile would be forgotten with the state.
            self._closed = True
            try:
                await self._remove_everything()
                await asyncio.to_thread(delete_state)
            except BaseException:
                self._closed = False
                raise

    async def view(self) -> PoolView:
        """Everything that gateways know."""
        await self._ready()
        models = [deployment.view for deployment in self._deployments.values()]
        return PoolView(version=self._version, secret=self._state.secret, models=tuple(models))

    async def watch(self, version: int, timeout_s: float) -> PoolView:
        """The view once it is not of this version any more, or unchanged after `timeout_s`."""
        await self._ready()
        try:
            async with asyncio.timeout(timeout_s):
                while self._version == version:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return await self.view()

    async def report(self, reports: Sequence[LoadReport]) -> None:
        """What gateways had to do lately, for the models whose replicas follow the load."""
        await self._ready()
        for one in reports:
            scaler = self._scalers.get(one.model_id)
            if scaler is not None:
                scaler.record(one)

    async def pids(self) -> dict[str, int]:
        """Process of this manager and of each replica, by name and id: for people who look for one."""
        await self._ready()
        pids = {MANAGER_NAME: os.getpid()}
        for deployment in self._deployments.values():
            pids |= deployment.pids
        return pids

    @property
    def _wanted(self) -> dict[str, WantedModel]:
        return {model.model_id: model for model in self._state.models}

    def _check_open(self) -> None:
        if self._closed:
            raise PoolError("the pool is being shut down; run `aviary shutdown` again to see it end, then deploy")

    async def _change(
        self, added: Sequence[RegistryEntry], removed: Iterable[str], options: PoolOptions | None
    ) -> Applied:
        """Check everything, remember it, then act: what is remembered is done even if this process dies."""
        if problems := [line for entry in added for line in self._problems(entry)]:
            raise PoolError("\n".join(problems))
        models = self._wanted
        changes = {entry.model_id: self._change_of(entry) for entry in added}
        for entry in added:
            models[entry.model_id] = self._changed_model(entry, changes[entry.model_id])
        gone = set(removed) & set(models)
        kept = tuple(model for model_id, model in models.items() if model_id not in gone)
        state = replace(self._state, models=kept, options=options or self._state.options)
        if state != self._state:
            await asyncio.to_thread(save_state, state)
            self._state = state
        for model_id, change in changes.items():
            if change is None:
                self._deploy(models[model_id])
            elif change is not Change.NONE:
                self._update(models[model_id])
        for model_id in gone:
            self._removals[model_id] = asyncio.create_task(self._remove(model_id), name=f"removal {model_id}")
        return Applied.of(changes, gone)

    def _problems(self, entry: RegistryEntry) -> list[str]:
        """Why an entry cannot be deployed; one line each."""
        model_id = entry.model_id
        problems = [f"{model_id}: {line}" for line in unsupported_keys(entry)]
        if model_id in self._removals:
            problems.append(f"{model_id}: is being removed; deploy it again when `aviary status` no longer shows it")
        return problems

    def _change_of(self, entry: RegistryEntry) -> Change | None:
        """What the entry changes of a deployed model; None when it is a new one."""
        known = self._wanted.get(entry.model_id)
        if known is None:
            return None
        change = change_between(known.entry, entry)
        if change is Change.SIZES and not self._deployments[entry.model_id].serves_current:
            return Change.REPLICAS  # those that load, or cannot be loaded, have nothing that is worth keeping
        return change

    def _changed_model(self, entry: RegistryEntry, change: Change | None) -> WantedModel:
        if change is None:
            return WantedModel(revisions=(_new_revision(entry),), created=int(time.time()))
        known = self._wanted[entry.model_id]
        match change:
            case Change.NONE:
                return known
            case Change.SETTINGS | Change.SIZES:
                return replace(known, revisions=(*known.revisions[:-1], replace(known.current, entry=entry)))
            case Change.REPLICAS:
                living = self._deployments[entry.model_id].living_revisions
                return replace(known, revisions=(*living, _new_revision(entry)))

    def _deploy(self, model: WantedModel, adopted: Sequence[str] = ()) -> Deployment:
        make_host = partial(RayHost, secret=self._state.secret)
        deployment = Deployment(model, lambda: self._state.options, make_host, self._note_change)
        self._deployments[model.model_id] = deployment
        self._scalers[model.model_id] = Autoscaler(model.entry.deployment.autoscaling_config)
        deployment.start(adopted)
        self._note_change()  # a model that sleeps makes no noise itself
        return deployment

    def _update(self, model: WantedModel) -> None:
        self._scalers[model.model_id].reconfigure(model.entry.deployment.autoscaling_config)
        self._deployments[model.model_id].update(model)
        self._note_change()

    async def _remove(self, model_id: str) -> None:
        try:
            await self._deployments[model_id].stop()
        except Exception:
            # An edge: a model whose removal failed must not stay for ever; the next sweep finds what is left of it.
            logger.exception("the removal of %s failed", model_id)
        finally:
            del self._deployments[model_id]
            del self._scalers[model_id]
            del self._removals[model_id]
            self._note_change()

    async def _remove_everything(self) -> None:
        """Every model, and whatever else in the cluster has a replica's name."""
        try:
            await self._ready()
        except PoolError as error:
            logger.warning("shutting down without knowing what was deployed: %s", error)
        await self._change((), set(self._wanted), None)
        await asyncio.gather(*self._removals.values())
        await self._sweep(await asyncio.to_thread(living_replicas))

    async def _ready(self) -> None:
        """Nothing is answered before the recovery: a picture that lacks living replicas would cut their requests."""
        await asyncio.shield(self._recovery)

    async def _recover(self) -> None:
        """Remember what was wanted, adopt the replicas that live, remove those that nobody wants."""
        try:
            stored = await _until_done(load_state)
        except DecodeError as error:
            raise PoolError(UNREADABLE_STATE.format(reason=error)) from error
        if stored is None:
            await _until_done(partial(save_state, self._state))
        else:
            self._state = stored
        # Without a state too: a shutdown may have had to leave replicas behind.
        names = await _until_done(living_replicas)
        for model in self._state.models:
            own = _replicas_of(model, names)
            names.difference_update(own.values())
            self._deploy(model, adopted=list(own))
        await self._sweep(names)
        await asyncio.gather(*(one.wait_until_settled(CALL_TIMEOUT_S) for one in self._deployments.values()))
        logger.info("recovered %d models", len(self._state.models))
        self._loops = (
            asyncio.create_task(self._follow_load(), name="pool-autoscaling"),
            asyncio.create_task(RoomKeeper(self._deployments).run(), name="pool-room"),
        )

    async def _follow_load(self) -> None:
        """Every model's number of replicas, decided again and again."""
        while True:
            for model_id, scaler in self._scalers.items():
                if model_id not in self._removals:
                    self._follow_one(self._deployments[model_id], scaler)
            await asyncio.sleep(DECISION_PERIOD_S)

    @staticmethod
    def _follow_one(deployment: Deployment, scaler: Autoscaler) -> None:
        try:
            deployment.follow(scaler, time.time())
        except Exception:
            # The edge of a task that nobody awaits: one model's failed decision must not stop those of all others.
            logger.exception("the number of replicas of %s was not decided", deployment.model_id)

    async def _sweep(self, names: Iterable[str]) -> None:
        """Remove what nobody wants; one that cannot be removed does not keep the rest."""
        doomed = sorted(names)
        results = await asyncio.gather(
            *(asyncio.to_thread(remove_replica, name) for name in doomed), return_exceptions=True
        )
        for name, result in zip(doomed, results, strict=True):
            if isinstance(result, BaseException):
                logger.error("%s could not be removed; the next manager tries again", name, exc_info=result)

    def _note_change(self) -> None:
        # Milliseconds since 1970, so that versions go on growing across restarts of this process.
        self._version = max(self._version + 1, int(time.time() * 1000))
        self._changed.set()
        self._changed = asyncio.Event()


async def _until_done(call: Callable[[], T]) -> T:
    """The result of a call that blocks, made again while the cluster's head is away; callers have their deadlines."""
    back_off = BackOff()
    while True:
        try:
            return await asyncio.to_thread(call)
        except DecodeError:
            raise
        except Exception:
            # An edge: Ray has no one type for a head that restarts, and a manager that gave up would never recover.
            delay_s = back_off.after_failed_start()
            logger.warning("the cluster's head does not answer; next attempt in %g s", delay_s, exc_info=True)
        await asyncio.sleep(delay_s)


def _new_revision(entry: RegistryEntry) -> Revision:
    return Revision(revision_id=secrets.token_hex(3), entry=entry)


def _replicas_of(model: WantedModel, names: Iterable[str]) -> dict[str, str]:
    """Names of the living replicas of any of its revisions, by replica id; those of the wanted one first."""
    found: dict[str, str] = {}
    for revision in reversed(model.revisions):
        prefix = replica_name(revision.entry, revision.revision_id)
        found |= {name.rpartition(":")[2]: name for name in sorted(names) if name.startswith(f"{prefix}-")}
    return found
