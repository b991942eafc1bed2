"""The cluster of docker-compose.yml, without Docker: each service's own command on a machine made of namespaces.

Machines are killed, unplugged and brought back; what a client sees of it is what docs/cluster.md promises. Linux and
root only. With Debian's redis-server the head dies too, and comes back.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest

from tests.e2e.conftest import echo_entry, environment, write_registry
from tests.support.compose import ROOT, num_bytes, services
from tests.support.faults import NoteFault
from tests.support.machines import Machine, Network, lack

NAMES: Final = ("redis", "head", "worker-m5", "worker-c5", "gateway", "deploy")
KINDS: Final = ("m5", "c5")
SECRETS: Final = {"ray_auth_token": "5e" * 32, "redis_password": "b1" * 32}
HAS_REDIS: Final = shutil.which("redis-server") is not None
STEP_TIME_S: Final = 0.05
START_TIMEOUT_S: Final = 90
COMMAND_TIMEOUT_S: Final = 120
PAUSE_S: Final = 0.2
ROUNDS_PER_MACHINE = 4
"""Machines take longer to die and come back than processes do: of so many rounds there is one."""
"""Between two requests of a client that sends one after the other."""

pytestmark = pytest.mark.timeout(400)


def model_of(kind: str) -> str:
    return f"tests/on-{kind}"


@dataclass(slots=True)
class Cluster:
    """The machines, and what runs on them by docker-compose.yml."""

    network: Network
    registry: Path

    @property
    def url(self) -> str:
        return f"http://{self.machine('gateway').address}:8000"

    def machine(self, name: str) -> Machine:
        return self.network.machines[name]

    def start(self, name: str) -> None:
        """As `docker compose up NAME`."""
        service = services()[name]
        self.machine(name).start(service.command, self.variables(name), num_bytes(service.raw.get("shm_size", "64m")))

    def execute(self, name: str, *command: str) -> str:
        """As `docker compose exec NAME COMMAND`; what it wrote."""
        result = self.machine(name).run(command, self.variables(name), COMMAND_TIMEOUT_S)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def deploy(self, *kinds: str) -> None:
        """As `docker compose run deploy`, with one model for each kind of machine."""
        for path in self.registry.glob("*.yaml"):
            path.unlink()
        entries = [echo_entry(model_of(kind), step_time_s=STEP_TIME_S, max_batch_size=8) for kind in kinds]
        for kind, entry in zip(kinds, entries, strict=True):
            # Several models may ask for one kind: what follows a dash is only part of the name.
            entry["scaling_config"]["resources_per_worker"] = {f"instance_type_{kind.partition('-')[0]}": 0.01}
        write_registry(self.registry, *entries)
        self.start("deploy")
        machine = self.machine("deploy")
        assert machine.process is not None
        assert machine.process.wait(COMMAND_TIMEOUT_S) == 0, machine.log

    def get(self, path: str) -> httpx.Response:
        return self.network.call(lambda: httpx.get(f"{self.url}{path}", timeout=10))

    def model(self, kind: str) -> dict[str, Any]:
        card: dict[str, Any] = self.get(f"/v1/models/{model_of(kind)}").json()
        return card

    def status(self) -> list[str]:
        """The lines of `aviary status` on the head, without the first."""
        return self.execute("head", "aviary", "status").splitlines()[1:]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> float:
        """How many seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < timeout_s:
            try:
                if condition():
                    return time.monotonic() - began
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        logs = "\n".join(f"--- {one.name}\n{one.log[-2000:]}" for one in self.network.machines.values())
        raise AssertionError(f"not within {timeout_s} s:\n{logs}")

    def is_ready(self, kind: str) -> bool:
        return bool(self.model(kind)["state"] == "ready")

    def variables(self, name: str) -> dict[str, str]:
        given = dict(services()[name].environment)
        if name == "deploy":
            given |= {"AVIARY_REGISTRY": str(self.registry), "AVIARY_MODELS": ""}
        if not HAS_REDIS:
            given.pop("RAY_REDIS_ADDRESS", None)
        path = (str(ROOT / "deploy"), str(Path(sys.executable).parent), environment()["PATH"])
        return environment(**given, PATH=":".join(path))


@dataclass
class Client(threading.Thread):
    """Sends one request after the other to one model until it is stopped, and notes what became of each."""

    cluster: Cluster
    kind: str
    statuses: list[int] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    longest_s: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        self.cluster.network.enter()
        body = {"model": model_of(self.kind), "prompt": "ten tokens", "max_tokens": 10}
        while not self.stopped.wait(PAUSE_S):
            began = time.monotonic()
            response = httpx.post(f"{self.cluster.url}/v1/completions", json=body, timeout=60)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.statuses.append(response.status_code)
            if response.status_code != httpx.codes.OK:
                self.errors.append({**response.json()["error"], "retry-after": response.headers.get("retry-after")})


@dataclass
class Stream(threading.Thread):
    """One long completion, token by token."""

    cluster: Cluster
    kind: str
    num_tokens: int
    text: str = ""
    error: openai.APIError | None = None
    ended_at: float = 0.0
    began: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    @property
    def prompt(self) -> str:
        return self.kind[0] * self.num_tokens

    def run(self) -> None:
        self.cluster.network.enter()
        url = f"{self.cluster.url}/v1"
        try:
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
                for chunk in client.completions.create(
                    model=model_of(self.kind), prompt=self.prompt, max_tokens=2 * self.num_tokens, stream=True
                ):
                    self.text += chunk.choices[0].text
                    self.began.set()
        except openai.APIError as error:
            self.error = error
        self.ended_at = time.monotonic()

    def start_and_wait(self) -> Stream:
        """Once its first token is there."""
        self.start()
        assert self.began.wait(20)
        return self


@contextmanager
def traffic(cluster: Cluster) -> Iterator[Mapping[str, Client]]:
    """A client for each model, as long as the block lasts."""
    clients = {kind: Client(cluster, kind) for kind in KINDS}
    for client in clients.values():
        client.start()
    try:
        yield clients
    finally:
        for client in clients.values():
            client.stopped.set()
        for client in clients.values():
            client.join(60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Everything up, as after `docker compose up --wait`."""
    if missing := lack():
        pytest.skip(f"no machines can be made here: {missing}")
    files = tmp_path_factory.mktemp("cluster")
    made = {name: text for name, text in SECRETS.items() if HAS_REDIS or name != "redis_password"}
    secrets = {
        name: {key: made[key] for key in services()[name].raw.get("secrets", ()) if key in made} for name in NAMES
    }
    with Network(NAMES, files / "machines", secrets) as network:
        one = Cluster(network, files / "registry")
        one.registry.mkdir()
        if HAS_REDIS:
            one.start("redis")
            one.wait_until(lambda: is_healthy(one, "redis"), 20)
        one.start("head")
        one.wait_until(lambda: is_healthy(one, "head"))
        for name in ("worker-m5", "worker-c5", "gateway"):
            one.start(name)
        one.deploy(*KINDS)
        one.wait_until(lambda: all(one.is_ready(kind) for kind in KINDS))
        yield one


def ends_of(clients: Mapping[str, Client]) -> Counter[str]:
    """Statuses of all their requests."""
    return Counter(f"status {status}" for client in clients.values() for status in client.statuses)


def is_healthy(cluster: Cluster, name: str) -> bool:
    """What the service's own health check says."""
    form, *test = services()[name].raw["healthcheck"]["test"]
    command = ["sh", "-c", *test] if form == "CMD-SHELL" else test
    return cluster.machine(name).run(command, cluster.variables(name), 20).returncode == 0


def test_every_service_is_healthy_and_each_model_on_its_machine(cluster: Cluster) -> None:
    for name in ("head", "worker-m5", "worker-c5", "gateway"):
        assert is_healthy(cluster, name)
    addresses = {kind: cluster.machine(f"worker-{kind}").address for kind in KINDS}
    for line in cluster.status():
        model, _, state, channel = line.split()
        assert state == "ready"
        assert channel.startswith(f"{addresses[model.rpartition('-')[2]]}:")


def test_nobody_enters_the_cluster_without_its_secret(cluster: Cluster) -> None:
    head = cluster.machine("head")
    known = cluster.variables("head")
    command = ("ray", "health-check", "--address=head:6379")
    assert head.run(command, known, COMMAND_TIMEOUT_S).returncode == 0
    stranger = {**known, "RAY_AUTH_TOKEN": "00" * 32}
    stranger.pop("RAY_AUTH_TOKEN_PATH")
    assert head.run(("ray", "status", "--address=head:6379"), stranger, COMMAND_TIMEOUT_S).returncode != 0


def test_a_machine_that_is_killed_takes_only_its_own_requests_along_and_its_model_comes_back_with_it(
    cluster: Cluster, rounds: int, note: NoteFault
) -> None:
    num_rounds = max(1, rounds // ROUNDS_PER_MACHINE)
    ends: Counter[str] = Counter()
    for _ in range(num_rounds):
        ends += kill_a_machine(cluster)
    note("kill of a machine", num_rounds, num_rounds, ends)


def kill_a_machine(cluster: Cluster) -> Counter[str]:
    """And start it again; what the requests of both models came to meanwhile."""
    with traffic(cluster) as clients:
        lost, kept = (Stream(cluster, kind, 100).start_and_wait() for kind in KINDS)
        killed_at = time.monotonic()
        cluster.machine("worker-m5").kill()
        for stream in (lost, kept):
            stream.join(60)
        cluster.wait_until(lambda: "no node offers instance_type_m5" in (cluster.model("m5")["reason"] or ""), 30)
        (pending,) = [line for line in cluster.status() if model_of("m5") in line]
        cluster.start("worker-m5")
        cluster.wait_until(lambda: cluster.is_ready("m5"))
        cluster.wait_until(lambda: clients["m5"].statuses[-1] == httpx.codes.OK, 20)

    assert kept.error is None
    assert kept.text == kept.prompt
    assert isinstance(lost.error, openai.APIError)
    assert lost.error.type == "server_error"
    assert lost.ended_at - killed_at < 2
    assert set(clients["c5"].statuses) == {httpx.codes.OK}
    assert "pending" in pending
    assert "no node offers instance_type_m5" in pending
    assert clients["m5"].errors
    for error in clients["m5"].errors:
        assert error["type"] in ("service_unavailable_error", "server_error")
    assert all(int(error["retry-after"]) >= 1 for error in clients["m5"].errors if error["retry-after"])
    return ends_of(clients)


@pytest.mark.skipif(not HAS_REDIS, reason="redis-server is not installed: apt-get install redis-server")
def test_a_head_that_dies_and_comes_back_costs_no_request_and_remembers_every_model(
    cluster: Cluster, rounds: int, note: NoteFault
) -> None:
    num_rounds = max(1, rounds // ROUNDS_PER_MACHINE)
    ends: Counter[str] = Counter()
    for _ in range(num_rounds):
        ends += kill_the_head(cluster)
        cluster.deploy(*KINDS)
    note("kill -9 of the head", num_rounds, num_rounds, ends)


def kill_the_head(cluster: Cluster) -> Counter[str]:
    """And start it again, and deploy one more model; what requests came to meanwhile."""
    before = sorted(cluster.status())
    head = cluster.machine("head")
    with traffic(cluster) as clients:
        streams = [Stream(cluster, kind, 300).start_and_wait() for kind in KINDS]
        (gcs,) = head.processes("gcs_server")
        gcs.kill()
        # Ray gives the whole head up with it, and so the container ends; its restart policy starts another one.
        cluster.wait_until(lambda: not head.is_on, 30)
        time.sleep(2)
        assert cluster.get("/ready").status_code == httpx.codes.OK
        cluster.start("head")
        cluster.wait_until(lambda: is_healthy(cluster, "head"))
        after = sorted(cluster.status())
        cluster.deploy(*KINDS, "c5-more")
        cluster.wait_until(lambda: cluster.is_ready("c5-more"))
        for stream in streams:
            stream.join(60)

    assert after == before
    for stream in streams:
        assert (stream.error, stream.text) == (None, stream.prompt)
    for client in clients.values():
        assert set(client.statuses) == {httpx.codes.OK}
        assert client.longest_s < 5
    return ends_of(clients)


@pytest.mark.long
def test_a_machine_that_falls_silent_costs_its_requests_an_error_and_nobody_else_anything(cluster: Cluster) -> None:
    with traffic(cluster) as clients:
        lost, kept = (Stream(cluster, kind, 300).start_and_wait() for kind in reversed(KINDS))
        unplugged_at = time.monotonic()
        cluster.machine("worker-c5").unplug()
        for stream in (lost, kept):
            stream.join(60)
        cluster.wait_until(lambda: "no node offers instance_type_c5" in (cluster.model("c5")["reason"] or ""), 60)
        cluster.machine("worker-c5").plug_in()
        # Whoever was given up must not go on: its node ends itself, and the restart policy starts another one.
        cluster.wait_until(lambda: not cluster.machine("worker-c5").is_on, 30)
        cluster.start("worker-c5")
        cluster.wait_until(lambda: cluster.is_ready("c5"))

    assert lost.error is not None
    assert lost.ended_at - unplugged_at < 12
    assert kept.error is None
    assert kept.text == kept.prompt
    assert set(clients["m5"].statuses) == {httpx.codes.OK}
    assert clients["c5"].longest_s < 15


def test_a_gateway_whose_ray_node_is_gone_ends_itself_and_serves_again_once_restarted(cluster: Cluster) -> None:
    gateway = cluster.machine("gateway")
    (node,) = gateway.processes("raylet")
    node.kill()
    cluster.wait_until(lambda: not gateway.is_on, 20)
    cluster.start("gateway")
    cluster.wait_until(lambda: cluster.get("/ready").status_code == httpx.codes.OK)
    assert all(cluster.is_ready(kind) for kind in KINDS)


def test_a_gateway_that_is_stopped_finishes_what_it_has(cluster: Cluster) -> None:
    stream = Stream(cluster, "m5", 60).start_and_wait()
    assert cluster.machine("gateway").stop() == 0
    stream.join(20)
    assert (stream.error, stream.text) == (None, stream.prompt)
