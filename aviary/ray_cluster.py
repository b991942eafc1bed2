"""The Ray cluster that a command works on: one it starts on this machine and stops again, or one it joins.

Ray is started and stopped on one thread that lives as long as this process, for two reasons: in the main thread
`ray.init` replaces the SIGTERM handler, and the kernel ends Ray's processes when the *thread* that started them ends.
The second is also why nothing of a local Ray outlives a killed command.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self

import ray
from ray._private import worker as ray_worker
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves this class out
from ray.exceptions import RayError

from aviary.errors import UsageError
from model_registry.contract import POOL_NAMESPACE

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES: Final = 100 * 1024 * 1024
"""Nearly unused: tokens travel over the channel."""
REACH_TIMEOUT_S: Final = 3.0
IDENTITY_PERIOD_S: Final = 10.0
STOP_TIMEOUT_S: Final = 30.0
MAX_TEMP_DIR_CHARS: Final = 40
"""Ray puts sockets below its folder, and a socket's path has 107 characters at most."""


class RayCluster:
    """A connection to Ray, made by `start_local` or `join` and ended by `close`."""

    def __init__(self, address: str, cluster_id: str | None, ray_thread: _RayThread, temp_dir: Path | None) -> None:
        self.address = address
        self.replaced = asyncio.Event()
        """Set when another cluster answers at this one's address, by `watch`."""
        self._cluster_id = cluster_id
        self._ray_thread = ray_thread
        self._temp_dir = temp_dir

    @property
    def is_local(self) -> bool:
        """Whether this process started it, and so stops it."""
        return self._temp_dir is not None

    @classmethod
    async def start_local(cls, num_cpus: float) -> Self:
        """A Ray of our own on this machine that offers at least so many CPUs. Raises `UsageError`."""
        temp_dir = _make_temp_dir()
        try:
            return await cls._connect(
                temp_dir,
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(-(-num_cpus // 1))),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(temp_dir),
            )
        except BaseException:
            shutil.rmtree(temp_dir, ignore_errors=True)
            raise

    @classmethod
    async def join(cls, address: str) -> Self:
        """The running cluster at `host:port`, or `auto` for this machine's. Raises `UsageError`."""
        await asyncio.to_thread(_check_reachable, address)
        return await cls._connect(None, address=address)

    @classmethod
    async def _connect(cls, temp_dir: Path | None, **options: Any) -> Self:
        ray_thread = _RayThread()
        try:
            address = await asyncio.wrap_future(ray_thread.call(lambda: _init(options)))
            cluster_id = await asyncio.wrap_future(ray_thread.call(lambda: _cluster_id(address)))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            what = "Ray cannot be started on this machine" if temp_dir else f"cannot join Ray at {options['address']}"
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(f"{what}: {reason}") from error
        return cls(address, cluster_id, ray_thread, temp_dir)

    async def watch(self) -> None:
        """Returns when the cluster is replaced by another one, as when its head comes back without its memory.

        Nothing that knew the first can reach the second: Ray refuses it.
        """
        thread = _RayThread()  # of its own, for an absent head holds up whoever asks it
        while not self.replaced.is_set():
            await asyncio.sleep(IDENTITY_PERIOD_S)
            found = await asyncio.wrap_future(thread.call(lambda: _cluster_id(self.address)))
            self._cluster_id = self._cluster_id or found
            if found is not None and found != self._cluster_id:
                self.replaced.set()

    async def close(self) -> None:
        """Leave the cluster; stop it, with everything in it, when it is our own."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.wrap_future(self._ray_thread.call(_shut_down))
        except TimeoutError:
            logger.warning("Ray did not stop within %g s; what is left of it ends with this process", STOP_TIMEOUT_S)
        if self._temp_dir is not None:
            await asyncio.to_thread(shutil.rmtree, self._temp_dir, ignore_errors=True)


class _RayThread:
    """Runs calls one after the other on a thread that ends with the process."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="ray", daemon=True).start()

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((function, future))
        return future

    def _run(self) -> None:
        while True:
            function, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  handed to whoever waits for the call
                future.set_exception(error)


def _init(options: dict[str, Any]) -> str:
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray prints which nodes and workers died on the stdout of every program, among what was asked of that program.
    ray_worker.print_to_stdstream = _log_message
    context = ray.init(
        namespace=POOL_NAMESPACE, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **options
    )
    address: str = context.address_info["gcs_address"]
    return address


def _log_message(data: dict[str, Any], ignore_prefix: bool) -> None:
    for line in data["lines"]:
        logger.info("Ray says: %s", line.strip())


def _cluster_id(address: str) -> str | None:
    """What tells the head's cluster from any other; None when it does not answer, or not to us."""
    try:
        cluster_id: str = GcsClient(address=address).cluster_id.hex()
    except (RayError, OSError, ValueError) as error:
        logger.debug("the head at %s does not say which cluster it is: %s", address, error)
        return None
    return cluster_id


def _shut_down() -> None:
    ray.shutdown()


def _make_temp_dir() -> Path:
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="aviary-", dir=parent if len(parent) <= MAX_TEMP_DIR_CHARS else "/tmp"))  # noqa: S108


def _check_reachable(address: str) -> None:
    """Raises `UsageError` at once where Ray itself would try for long."""
    if "://" in address:
        raise UsageError(f"RAY_ADDRESS={address}: give the head's host:port; Ray Client cannot run a gateway")
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"RAY_ADDRESS={address}: give the head as host:port, such as 10.0.0.5:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_TIMEOUT_S).close()
    except OSError as error:
        raise UsageError(
            f"no Ray head answers at {address} ({error.strerror or error}); start one with `ray start --head`, or "
            "unset RAY_ADDRESS to let `aviary serve` run one of its own"
        ) from None
