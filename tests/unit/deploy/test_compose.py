"""docker-compose.yml: valid, and true to what it says about itself, as far as that shows without a container engine."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from compose_spec import PyCompose

from aviary.cli import parser
from aviary.settings import DeploySettings
from gateway.server import LAST_WRITES_S
from gateway.settings import GatewaySettings
from tests.support.compose import (
    COMPOSE_FILE,
    ROOT,
    Service,
    compose_document,
    interpolated,
    num_bytes,
    num_seconds,
    services,
    settings_variables,
    variables,
)

RAY_SERVICES = ("head", "worker-m5", "worker-c5", "worker-g5", "deploy", "gateway")
OBJECT_STORE_BYTES = 104_857_600
GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return compose_document()


def aviary_arguments(service: Service) -> list[str]:
    """What follows `aviary` in a service's command."""
    return list(service.command[service.command.index("aviary") + 1 :])


def networks(service: Service) -> set[str]:
    return set(service.raw["networks"])


def test_it_follows_the_compose_specification(document: dict[str, Any]) -> None:
    compose = PyCompose.from_json(json.dumps(document))
    compose.validate()
    assert set(compose.service_names()) == set(services())


@pytest.mark.parametrize(
    "broken",
    [{"services": {"a": {"image": "x", "comand": []}}}, {"services": {"a": {"image": "x", "networks": ["none"]}}}],
)
def test_the_check_of_the_specification_finds_what_is_wrong(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"comand|none"):
        PyCompose.from_json(json.dumps(broken)).validate()


def test_variables_are_taken_as_compose_takes_them() -> None:
    text = "${A} ${A-x} ${A:-x} ${B} ${B-x} ${B:-x} $$C"
    assert interpolated(text, {"A": ""}) == "  x  x x $C"
    assert variables(text) == {"A", "B"}


def test_every_variable_it_takes_is_explained() -> None:
    for name in variables(COMPOSE_FILE.read_text(encoding="utf-8")):
        assert f"`{name}`" in GUIDE


@pytest.mark.parametrize("service", services().values(), ids=lambda service: service.name)
def test_each_aviary_variable_is_a_setting_that_exists(service: Service) -> None:
    ours = {name for name in service.environment if name.startswith(("AVIARY_", "HF_"))}
    assert ours <= settings_variables()


@pytest.mark.parametrize("name", ["deploy", "gateway"])
def test_each_aviary_command_line_is_understood(name: str) -> None:
    service = services()[name]
    assert service.command[0] == "with-ray-node"
    assert parser().parse_args(aviary_arguments(service)).command
    assert service.environment["RAY_ADDRESS"] == "head:6379"


def test_settings_load_with_the_values_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in services().values():
        for name, value in service.environment.items():
            if name.startswith("AVIARY_"):
                monkeypatch.setenv(name, value)
        GatewaySettings.load()
        DeploySettings.load()


def test_what_is_deployed_by_default_is_the_default_of_the_command_line() -> None:
    deploy = services()["deploy"]
    assert deploy.environment["AVIARY_MODELS"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert deploy.raw["volumes"] == ["./model_registry:/registry:ro"]
    assert deploy.environment["AVIARY_REGISTRY"] == "/registry"


def test_compose_knows_that_what_ends_is_meant_to_end() -> None:
    """`up --wait` takes a service that ends for a failure, unless another one waits for its end."""
    waited_for = {
        name
        for service in services().values()
        for name, dependency in service.raw.get("depends_on", {}).items()
        if dependency["condition"] == "service_completed_successfully"
    }
    assert waited_for == {name for name, service in services().items() if service.raw.get("restart") == "no"}


def test_a_gateway_is_stopped_only_after_it_has_drained() -> None:
    gateway = services()["gateway"]
    drain_s = float(gateway.environment["AVIARY_DRAIN_TIMEOUT_S"])
    assert num_seconds(gateway.raw["stop_grace_period"]) >= drain_s + LAST_WRITES_S + 5


def test_a_gateway_is_healthy_when_it_is_ready() -> None:
    *_, code = services()["gateway"].raw["healthcheck"]["test"]
    assert "http://127.0.0.1:8000/ready" in code
    compile(code, "healthcheck", "exec")


@pytest.mark.parametrize("name", RAY_SERVICES)
def test_every_ray_node_has_the_one_secret_and_waits_for_a_head_that_comes_back(name: str) -> None:
    service = services()[name]
    assert service.environment["RAY_AUTH_MODE"] == "token"
    assert service.environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_auth_token"
    assert "ray_auth_token" in service.raw["secrets"]
    assert int(service.environment["RAY_gcs_rpc_server_reconnect_timeout_s"]) >= 600
    assert num_bytes(service.raw["shm_size"]) > OBJECT_STORE_BYTES


def test_each_kind_of_worker_offers_a_resource_of_its_own() -> None:
    kinds = {}
    for service in services().values():
        for part in service.command:
            if part.startswith("--resources="):
                kinds[service.name] = set(json.loads(part.removeprefix("--resources=")))
    assert kinds == {f"worker-{kind}": {f"instance_type_{kind}"} for kind in ("m5", "c5", "g5")}


def test_gpus_are_asked_for_by_their_profile_only() -> None:
    with_gpus = [name for name, service in services().items() if "deploy" in service.raw]
    assert with_gpus == ["worker-g5"]
    assert services()["worker-g5"].raw["profiles"] == ["gpu"]
    assert all("profiles" not in service.raw for name, service in services().items() if name not in with_gpus)


def test_what_is_published_is_published_to_this_machine_only() -> None:
    published = {name: service.raw["ports"] for name, service in services().items() if "ports" in service.raw}
    assert set(published) == {"gateway", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_only_the_head_reaches_its_store(document: dict[str, Any]) -> None:
    assert [name for name, one in services().items() if "store" in networks(one)] == ["redis", "head"]
    assert document["networks"]["store"]["internal"] is True
    assert [name for name, one in services().items() if "redis_password" in one.raw.get("secrets", ())] == [
        "redis",
        "head",
    ]


@pytest.mark.parametrize("service", services().values(), ids=lambda service: service.name)
def test_every_service_is_bounded_and_unprivileged(service: Service) -> None:
    assert service.raw["cap_drop"] == ["ALL"]
    assert service.raw["security_opt"] == ["no-new-privileges:true"]
    assert num_bytes(service.raw["mem_limit"]) > 0
    assert service.raw["init"] is True


def test_images_from_elsewhere_have_versions() -> None:
    images = {service.raw["image"] for service in services().values() if "build" not in service.raw}
    assert all(re.search(r":v?\d+\.\d+", image) for image in images)


def test_the_secrets_are_made_by_the_script_and_never_committed(document: dict[str, Any]) -> None:
    script = (ROOT / "deploy" / "make-secrets").read_text(encoding="utf-8")
    for name, secret in document["secrets"].items():
        assert secret["file"] == f"deploy/secrets/{name}"
        assert name in script
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
