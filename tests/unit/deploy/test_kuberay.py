"""deploy/kuberay: objects that Kubernetes accepts, that fit together, and that say the same as docker-compose.yml.

Kubernetes' own schemas come with a package. Those of KubeRay and of the Prometheus operator come with none: KubeRay's
pods are checked as pods, and the few other fields against what the operators' documentation lists.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from aviary.cli import parser
from gateway.server import LAST_WRITES_S
from model_registry.loader import ZOO, load_registry
from tests.support.compose import services, settings_variables

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "deploy" / "kuberay"
VERSIONS: Final = ("1.29", "1.37")
CUSTOM: Final = {"RayCluster", "ServiceMonitor", "Kustomization"}
CLUSTER_FIELDS: Final = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
GROUP_FIELDS: Final = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
SECRET_KEYS: Final = {"ray_auth_token", "redis_password", "hf_token"}


@cache
def objects() -> tuple[dict[str, Any], ...]:
    files = sorted(FOLDER.glob("*.yaml"))
    return tuple(one for path in files for one in yaml.safe_load_all(path.read_text(encoding="utf-8")))


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in objects() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def cluster() -> dict[str, Any]:
    spec: dict[str, Any] = named("RayCluster", "aviary")["spec"]
    return spec


def groups() -> list[dict[str, Any]]:
    return [cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]]


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((group.get("groupName", "head"), group["template"]) for group in groups())
    for one in objects():
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, template in pod_templates():
        yield from ((name, container) for container in template["spec"]["containers"])


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value") for one in container.get("env", ())}


def identity(one: dict[str, Any]) -> str:
    return f"{one['kind']}/{one.get('metadata', {}).get('name', '')}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("one", [one for one in objects() if one["kind"] not in CUSTOM], ids=identity)
def test_kubernetes_accepts_each_object(one: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize(("name", "template"), list(pod_templates()))
def test_kubernetes_accepts_each_pod(name: str, template: dict[str, Any]) -> None:
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
    kubernetes_validate.validate(wrapped, VERSIONS[-1], strict=True)


def test_the_check_of_pods_finds_what_is_wrong() -> None:
    _, template = next(pod_templates())
    broken = json.loads(json.dumps(template))
    broken["spec"]["containers"][0]["livenessProb"] = {}
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": broken}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(wrapped, VERSIONS[-1], strict=True)


def test_the_ray_cluster_has_the_fields_that_kuberay_knows() -> None:
    assert set(cluster()) == CLUSTER_FIELDS
    assert set(cluster()["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster()["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants strings"


def test_it_runs_the_ray_that_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster()['rayVersion']}" in pins


def test_each_group_offers_a_resource_of_its_own_once_a_shell_has_read_it() -> None:
    for group in cluster()["workerGroupSpecs"]:
        (value,) = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(value) == {f"instance_type_{group['groupName']}": 1}


def test_the_head_runs_no_model() -> None:
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_nodes_are_told_the_same_as_those_of_the_compose_file() -> None:
    (head,) = cluster()["headGroupSpec"]["template"]["spec"]["containers"]
    given = environment(head)
    for name, value in services()["head"].environment.items():
        if name.startswith(("RAY_health", "RAY_gcs", "RAY_AUTH_MODE")):
            assert given[name] == value
    for name, container in containers():
        if name != "redis":
            assert environment(container)["RAY_AUTH_MODE"] == "token"
            assert "RAY_AUTH_TOKEN" in environment(container)


@pytest.mark.parametrize(("name", "container"), list(containers()))
def test_each_aviary_variable_is_a_setting_that_exists(name: str, container: dict[str, Any]) -> None:
    assert {one for one in environment(container) if one.startswith(("AVIARY_", "HF_"))} <= settings_variables()


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "gateway"), ("Job", "deploy")])
def test_each_aviary_command_line_is_understood(kind: str, name: str) -> None:
    (container,) = named(kind, name)["spec"]["template"]["spec"]["containers"]
    first, program, *arguments = container["command"]
    assert (first, program) == ("with-ray-node", "aviary")
    assert parser().parse_args(arguments).command
    # The whole name: Ray's resolver does not try the domains that a short one may be in.
    assert environment(container)["RAY_ADDRESS"] == "aviary-head-svc.aviary.svc.cluster.local:6379"


@pytest.mark.parametrize(("name", "template"), list(pod_templates()))
def test_every_pod_is_restricted_and_bounded(name: str, template: dict[str, Any]) -> None:
    """As the namespace's pod security level demands."""
    pod = template["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is False
    for container in template["spec"]["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"]


def test_every_secret_is_a_reference_to_a_key_that_is_made() -> None:
    references = [
        one["valueFrom"]["secretKeyRef"] for _, container in containers() for one in container.get("env", ())
        if "valueFrom" in one
    ]  # fmt: skip
    references.append(cluster()["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"])
    assert {one["name"] for one in references} == {"aviary"}
    assert {one["key"] for one in references} == SECRET_KEYS
    assert not any(one["kind"] == "Secret" for one in objects())


def test_kuberay_finds_probes_on_every_ray_container() -> None:
    """It would add its own otherwise, and those ask a server that is not there."""
    for group in groups():
        for container in group["template"]["spec"]["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= set(container)


def test_a_gateway_is_probed_as_it_means_to_be() -> None:
    (container,) = named("Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    paths = {kind: container[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/live", "readinessProbe": "/ready", "livenessProbe": "/live"}


def test_a_gateway_is_killed_only_after_it_has_drained() -> None:
    pod = named("Deployment", "gateway")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    before_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_s = float(environment(container)["AVIARY_DRAIN_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] >= before_s + drain_s + LAST_WRITES_S + 5


def test_service_autoscaler_budget_and_monitor_mean_the_gateways() -> None:
    deployment = named("Deployment", "gateway")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    (port,) = named("Service", "gateway")["spec"]["ports"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert deployment["selector"]["matchLabels"] == labels
    assert named("Service", "gateway")["spec"]["selector"] == labels
    assert named("PodDisruptionBudget", "gateway")["spec"]["selector"]["matchLabels"] == labels
    assert port["targetPort"] in [one["name"] for one in container["ports"]]
    assert named("HorizontalPodAutoscaler", "gateway")["spec"]["scaleTargetRef"]["name"] == "gateway"
    assert "replicas" not in deployment, "the autoscaler owns the number"
    assert "cpu" in container["resources"]["requests"], "utilisation is a share of what is requested"
    monitor = named("ServiceMonitor", "gateway")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"] == named("Service", "gateway")["metadata"]["labels"]
    assert monitor["spec"]["endpoints"] == [{"port": port["name"], "path": "/metrics", "interval": "10s"}]


def test_network_policies_know_every_pod() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects() if one["kind"] == "NetworkPolicy"}
    (peer,) = policies["cluster"]["ingress"][0]["from"]
    (expression,) = peer["podSelector"]["matchExpressions"]
    names = {template["metadata"]["labels"]["app.kubernetes.io/name"] for _, template in pod_templates()}
    assert set(expression["values"]) == names - {"redis"}
    callers = [peer["podSelector"]["matchLabels"] for peer in policies["redis"]["ingress"][0]["from"]]
    assert [labels["ray.io/node-type"] for labels in callers] == ["head", "redis-cleanup"]


def test_the_kustomization_takes_every_file_and_no_other() -> None:
    (kustomization,) = [one for one in objects() if one["kind"] == "Kustomization"]
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "servicemonitor.yaml"}
    assert set(kustomization["resources"]) == files
    (generator,) = kustomization["configMapGenerator"]
    assert {Path(name).name for name in generator["files"]} == {path.name for path in (FOLDER / "registry").iterdir()}
    images = {container["image"] for name, container in containers() if name != "redis"}
    assert {one["name"] for one in kustomization["images"]} == images


def test_its_registry_loads_and_its_models_are_those_of_the_zoo() -> None:
    registry = load_registry(FOLDER / "registry")
    assert registry.entries
    for path in (FOLDER / "registry").iterdir():
        assert path.read_text(encoding="utf-8") == (ZOO / path.name).read_text(encoding="utf-8")
