"""Machines of a cluster inside this one: each a set of Linux namespaces, on a bridge in a namespace of its own.

A machine has its own network, processes, /tmp/ray, /dev/shm and /run/secrets, as a container has, and finds the
others by name. Nothing of this host's network changes. Needs root, `ip` and `unshare`; `lack` says what is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import psutil

from tests.support.gateways import wait_for
from tests.support.name_server import NameServer

SUBNET: Final = "10.213.7"
CLONE_NEWNET: Final = 0x40000000
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 30.0
OURS: Final = ("setpriv", "--pdeathsig", "KILL")
"""Begins what must not outlive this process, however that ends."""
NAMESPACES: Final = ("--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")

# The first process of a machine: makes its own files, then runs the command as a container engine's init would: hands
# on SIGTERM, and waits for whatever is left behind.
_INIT: Final = """
set -e
hostname "$1"; files="$2"; shm_bytes="$3"; shift 3
mkdir -p /tmp/ray
mount --bind "$files/ray" /tmp/ray
mount --bind "$files/hosts" /etc/hosts
mount --bind "$files/resolv.conf" /etc/resolv.conf
mount -t tmpfs -o "size=$shm_bytes" shm /dev/shm
mount -t tmpfs run /run
mkdir /run/secrets
mount --bind "$files/secrets" /run/secrets
"$@" &
child=$!
trap 'kill -TERM $child' TERM
set +e
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
exit $status
"""

T = TypeVar("T")


def lack() -> str | None:
    """Why no machines can be made here; None when they can."""
    if sys.platform != "linux":
        return f"needs Linux's namespaces, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "needs root, to make namespaces"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "setpriv", "mount") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}: install iproute2, util-linux and mount"
    probe = f"aviary-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"may not make a network namespace here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return None


@dataclass(slots=True)
class Machine:
    """One machine: off at first, then on and off as often as one likes."""

    name: str
    namespace: str
    address: str
    files: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Everything its commands wrote."""
        path = self.files / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def is_on(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, command: Sequence[str], environment: Mapping[str, str], shm_bytes: int) -> None:
        """Switch it on with a command as its only program. Its /tmp is that of a new container."""
        shutil.rmtree(self.files / "ray", ignore_errors=True)
        (self.files / "ray").mkdir()
        init = ["sh", "-c", _INIT, "init", self.name, str(self.files), str(shm_bytes)]
        with (self.files / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*OURS, "ip", "netns", "exec", self.namespace, "unshare", *NAMESPACES, *init, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.files,
            )
        wait_for(lambda: not self.is_on or bool(self._children()), START_TIMEOUT_S)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """One more command on it while it is on, as `docker exec` would."""
        entered = ["nsenter", f"--target={self._init.pid}", "--mount", "--uts", "--pid", "--net"]
        return subprocess.run(
            [*entered, *command], env=dict(environment), capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """Its living processes of this name."""
        found = []
        for process in self._init.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return found

    def kill(self) -> None:
        """Every process of it at once, without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def unplug(self) -> None:
        """From one moment to the next nothing reaches it, and nothing comes from it."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        _ip("-n", self.namespace, "route", "replace", "default", "via", f"{SUBNET}.1")

    def stop(self) -> int:
        """As a container engine stops one: SIGTERM, and after a while SIGKILL. The exit status."""
        assert self.process is not None
        if self.is_on:
            self._init.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    @property
    def _init(self) -> psutil.Process:
        return self._children()[0]

    def _children(self) -> list[psutil.Process]:
        """Its first process, as soon as there is one: what makes the namespaces is outside of them."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()


class Network:
    """Context manager: a bridge with a machine for each name; all of it is gone afterwards."""

    def __init__(self, names: Sequence[str], files: Path, secrets: Mapping[str, Mapping[str, str]]) -> None:
        """`secrets` are the files below /run/secrets of each machine; a machine's own folder is below `files`."""
        self._switch = f"aviary-{os.getpid()}"
        self.machines = {
            name: Machine(name, f"{self._switch}-{name}", f"{SUBNET}.{number}", files / name)
            for number, name in enumerate(names, start=10)
        }
        self._secrets = secrets
        addresses = {name: machine.address for name, machine in self.machines.items()}
        self._name_server = NameServer(f"{SUBNET}.1", addresses, self.enter)
        self._resources = contextlib.ExitStack()
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="in-network", initializer=self.enter)

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            if machine.is_on:
                machine.kill()
        self._resources.close()
        self._caller.shutdown()
        for name in (*(machine.namespace for machine in self.machines.values()), self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def enter(self) -> None:
        """The calling thread's new sockets belong to this network from now on."""
        with Path(f"/run/netns/{self._switch}").open("rb") as namespace:
            library = ctypes.CDLL(None, use_errno=True)
            if library.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot enter the network's namespace")

    def call(self, function: Callable[[], T]) -> T:
        """The result of a function that is run inside the network."""
        return self._caller.submit(function).result()

    def _build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "address", "add", f"{SUBNET}.1/24", "dev", "bridge")
        for device in ("lo", "bridge"):
            _ip("-n", self._switch, "link", "set", device, "up")
        for number, machine in enumerate(self.machines.values()):
            self._connect(machine, f"port{number}")
            self._write_files(machine)
        self._resources.enter_context(self._name_server)

    def _connect(self, machine: Machine, port: str) -> None:
        _ip("netns", "add", machine.namespace)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
        _ip("-n", machine.namespace, "link", "set", "lo", "up")
        machine.plug_in()

    def _write_files(self, machine: Machine) -> None:
        (machine.files / "secrets").mkdir(parents=True)
        for name, text in self._secrets.get(machine.name, {}).items():
            (machine.files / "secrets" / name).write_text(text)
        (machine.files / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {machine.name}\n")
        (machine.files / "resolv.conf").write_text(f"nameserver {SUBNET}.1\noptions ndots:0\n")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
