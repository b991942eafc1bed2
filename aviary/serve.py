"""`aviary serve`: everything on one machine, from a registry to an address, and back to nothing at Ctrl-C.

Checks all that can be checked before anything starts; then Ray, the pool, the gateway, and lines about each model
until its fate is known. What it started it stops, and nothing else: in a cluster it joined, only its own models go.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from aviary.errors import ClusterReplacedError, CommandError, UsageError
from aviary.progress import Outcome, Progress
from aviary.ray_cluster import RayCluster
from aviary.registry_follower import RegistryFollower
from aviary.settings import DeploySettings, load_gateway_settings
from aviary.supervisor import serve_together
from gateway.app import create_app
from gateway.channel import GrpcChannel
from gateway.listener import BindError
from gateway.pool_client import RayPoolClient
from gateway.server import serve
from gateway.settings import GatewaySettings
from gateway.start_check import check_start
from gateway.store_file import StoreError
from model_registry.schema import RegistryEntry
from model_registry.support import unsupported_keys
from workers.pool.client import PoolClient
from workers.pool.errors import PoolError
from workers.pool.placement import placement_for
from workers.pool.state import Applied, PoolOptions

logger = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
STOP_LOCAL_TIMEOUT_S: Final = 10.0
REMOVAL_GRACE_S: Final = 30.0
"""For removing the actors once their requests have ended."""
CLIENT_EXAMPLE: Final = """
Try it:

  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "stream": true, "temperature": 0,
         "messages": [{{"role": "user", "content": "{question}"}}]}}'

or from Python, with the openai package:

  client = openai.OpenAI(base_url="{url}/v1", api_key="none")
  messages = [{{"role": "user", "content": "{question}"}}]
  answer = client.chat.completions.create(model="{model}", messages=messages, temperature=0)
  print(answer.choices[0].message.content)

Ctrl-C stops everything.
"""
QUESTION: Final = "What is the capital of France?"


async def run(arguments: argparse.Namespace) -> int:
    """The command; returns its exit status."""
    settings = DeploySettings.load(models=arguments.models, registry=arguments.registry)
    gateway_settings = load_gateway_settings(host=arguments.host, port=arguments.port, workers=arguments.workers)
    entries = settings.select(settings.read_registry())
    check_supported(entries)
    try:
        await check_start(gateway_settings)
    except (BindError, StoreError) as error:
        raise UsageError(str(error)) from None
    with cancelled_by_signals():
        async with _cluster(settings, entries) as cluster, _deployed(settings, entries, cluster) as own:
            return await _Service(gateway_settings, settings, own, entries, cluster).run()


def check_supported(entries: Sequence[RegistryEntry]) -> None:
    """Raises `UsageError` naming every key that this release does not execute."""
    lines = [f"  - {entry.model_id}: {line}" for entry in entries for line in unsupported_keys(entry)]
    if lines:
        raise UsageError("\n".join(["the registry asks for what this release does not execute:", *lines]))


def pool_options(settings: DeploySettings) -> PoolOptions:
    return PoolOptions(load_timeout_s=settings.load_timeout_s, drain_timeout_s=settings.drain_timeout_s)


@contextlib.contextmanager
def cancelled_by_signals() -> Iterator[None]:
    """Until the gateway takes the signals over, the first one cancels the command, which then cleans up as always."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  only ever called in a task

    def cancel() -> None:
        on_signals(_say_still_stopping)
        task.cancel()

    on_signals(cancel)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def on_signals(handler: Callable[[], None]) -> None:
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, handler)


def _say_still_stopping() -> None:
    # A clean-up cut short would leave models in a cluster that goes on; each of its steps has a deadline.
    print("still stopping", flush=True)


@contextlib.asynccontextmanager
async def _cluster(settings: DeploySettings, entries: Sequence[RegistryEntry]) -> AsyncIterator[RayCluster]:
    """The cluster of the settings, or one of our own in which all the models find CPUs: here they only share them."""
    if settings.ray_address is not None:
        print(f"joining Ray at {settings.ray_address}", flush=True)
        cluster = await RayCluster.join(settings.ray_address)
    else:
        print("starting Ray on this machine", flush=True)
        cluster = await RayCluster.start_local(sum(_num_cpus(entry) for entry in entries))
        print(f"Ray runs; `RAY_ADDRESS={cluster.address} aviary status` shows the pool", flush=True)
    try:
        yield cluster
    finally:
        print("stopping Ray" if cluster.is_local else "leaving Ray", flush=True)
        await cluster.close()


class _OwnModels:
    """What this command deploys in a pool that may hold the models of others too."""

    def __init__(self, pool: PoolClient, options: PoolOptions) -> None:
        self.pool = pool
        self._options = options
        self._model_ids: set[str] = set()

    async def deploy(self, entries: Sequence[RegistryEntry]) -> Applied:
        """Bring these in line, remove those of ours that are not among them, and leave all others alone."""
        known = {model.model_id for model in (await self.pool.view()).models}
        wanted = {entry.model_id for entry in entries}
        # Noted first: a command that is cancelled meanwhile withdraws what it may have deployed.
        self._model_ids |= wanted - known
        applied = await self.pool.add(entries, self._options)
        gone = self._model_ids - wanted
        await self.pool.remove(sorted(gone), self._options.drain_timeout_s + REMOVAL_GRACE_S)
        self._model_ids -= gone
        return replace(applied, removed=tuple(sorted(gone)))

    async def withdraw(self, *, is_last: bool) -> None:
        """Remove ours from a cluster that goes on, and the manager too when it is of no use to others."""
        timeout_s = self._options.drain_timeout_s + REMOVAL_GRACE_S
        await self.pool.remove(sorted(self._model_ids), timeout_s)
        if is_last and not (await self.pool.view()).models:
            await self.pool.shutdown(timeout_s)


@contextlib.asynccontextmanager
async def _deployed(
    settings: DeploySettings, entries: Sequence[RegistryEntry], cluster: RayCluster
) -> AsyncIterator[_OwnModels]:
    """The pool with the models in it; afterwards without those that were not there before."""
    found = await PoolClient.find()
    # Shielded: a command that is cancelled meanwhile still has to end the manager that it started.
    starting = asyncio.ensure_future(_own_models(settings))
    try:
        own = await asyncio.shield(starting)
        await own.deploy(entries)
        yield own
    finally:
        own = await starting
        try:
            if cluster.is_local:
                await own.pool.shutdown(STOP_LOCAL_TIMEOUT_S)
            elif not cluster.replaced.is_set():
                await own.withdraw(is_last=found is None)
        except PoolError as error:
            logger.warning("the pool was not emptied: %s", error)


async def _own_models(settings: DeploySettings) -> _OwnModels:
    return _OwnModels(await PoolClient.find_or_start(), pool_options(settings))


def _num_cpus(entry: RegistryEntry) -> float:
    bundles = placement_for(entry).bundles
    most = entry.deployment.autoscaling_config.max_replicas
    return most * sum(bundle.get("CPU", 0) for bundle in bundles)


class _Service:
    """The gateway, in this process or in several of its own, and what is said meanwhile."""

    def __init__(
        self,
        settings: GatewaySettings,
        deploy_settings: DeploySettings,
        own: _OwnModels,
        entries: Sequence[RegistryEntry],
        cluster: RayCluster,
    ) -> None:
        self._settings = settings
        self._own = own
        self._registry = RegistryFollower(deploy_settings, self._deploy)
        self._model_ids = [entry.model_id for entry in entries]
        self._cluster = cluster
        self._url = ""
        self._has_started = asyncio.Event()
        self._failure: CommandError | None = None

    async def run(self) -> int:
        """Until a signal, or until it is clear that no model can be served here any more. Raises `CommandError`."""
        following = (
            asyncio.create_task(self._follow(), name="progress"),
            asyncio.create_task(self._registry.watch(), name="registry"),
            asyncio.create_task(self._watch_cluster(), name="watch-cluster"),
        )
        try:
            status = await self._serve()
        except BindError as error:
            raise UsageError(str(error)) from None
        finally:
            # The gateway gave the signals back to their defaults; the removal that follows must not be cut short.
            on_signals(_say_still_stopping)
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        return status

    async def _deploy(self, entries: Sequence[RegistryEntry]) -> Applied:
        self._model_ids[:] = [entry.model_id for entry in entries]  # whose progress is shown from now on
        return await self._own.deploy(entries)

    async def _serve(self) -> int:
        if self._settings.workers > 1:
            # Without the registry: this process follows it, and theirs would make it the whole of a pool it shares.
            environment = {"AVIARY_RAY_ADDRESS": self._cluster.address, "AVIARY_REGISTRY": ""}
            return await serve_together(self._settings, on_started=self._on_started, **environment)
        pool = RayPoolClient(self._cluster.address)
        app = create_app(self._settings, pool, GrpcChannel, reload=self._registry.reload_for_gateway)
        return await serve(app, self._settings, on_started=self._on_started)

    def _on_started(self, url: str) -> None:
        self._url = url
        self._has_started.set()

    async def _follow(self) -> None:
        """Print what becomes of the models, and go on as long as the gateway does."""
        progress = Progress(self._model_ids, time.monotonic)
        was_settled = False
        try:
            async for view in self._own.pool.views():
                for line in progress.update(view):
                    print(line, flush=True)
                if progress.is_settled and not was_settled:
                    was_settled = True
                    await self._has_started.wait()
                    self._conclude(progress.outcomes)
        except PoolError as error:
            logger.warning("no more news of the pool: %s", error)

    async def _watch_cluster(self) -> None:
        if not self._cluster.is_local:  # our own has nobody to take its place
            await self._cluster.watch()
            await self._has_started.wait()
            self._give_up(ClusterReplacedError(self._cluster.address))

    def _conclude(self, outcomes: Sequence[Outcome]) -> None:
        """Every model's first attempt has ended: say so, or give up when nothing at all is served."""
        served = [outcome.model_id for outcome in outcomes if outcome.serves]
        reasons = [f"{outcome.model_id}: {outcome.reason}" for outcome in outcomes if not outcome.serves]
        if not served and self._cluster.is_local:
            self._give_up(CommandError("\n".join(["no model can be served:", *(f"  - {one}" for one in reasons)])))
            return
        for reason in reasons:
            print(f"not served as wanted: {reason}", flush=True)
        if served:
            print(f"\nAviary serves {', '.join(served)} on {self._url}", flush=True)
            example_url = self._url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            print(CLIENT_EXAMPLE.format(url=example_url, model=served[0], question=QUESTION), flush=True)

    def _give_up(self, reason: CommandError) -> None:
        """The gateway ends as at any SIGTERM: there is one way down."""
        self._failure = reason
        signal.raise_signal(signal.SIGTERM)
