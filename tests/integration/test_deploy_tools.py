"""deploy/ as the tools see it that will read it: Ray's command line, shells, linters, Prometheus and kubectl.

The linters come with the development packages; `promtool`, where it is, from Debian's package prometheus.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.compose import ROOT, services

pytestmark = pytest.mark.parallel

DEPLOY: Final = ROOT / "deploy"
SCRIPTS: Final = ("ray-node", "with-ray-node", "make-secrets")
TOOL_TIMEOUT_S: Final = 60
ALL_MODULES: Final = packages_distributions()
RECORDER: Final = """#!/bin/sh
printf '%s\\n' "$0" "$@" > "$RECORD.$(basename "$0").$$"
"""
NODE: Final = """
"$(dirname "$0")/raylet" 5 > /dev/null 2>&1 &
"""
"""What `ray start` leaves running."""
IMPORT_WITHOUT: Final = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
importlib.import_module(sys.argv[1])
"""


def run(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )


def tool(name: str) -> Path:
    """A program of the development packages: beside this Python."""
    return Path(sys.executable).parent / name


def recorded(folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The arguments that each program got when a command ran with `ray` and `aviary` replaced by recorders."""
    for name, text in (("ray", RECORDER + NODE), ("aviary", RECORDER)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    shutil.copy(shutil.which("sleep") or "", folder / "raylet")
    path = f"{folder}:{DEPLOY}:{os.environ['PATH']}"
    result = run(command, **environment, PATH=path, RECORD=str(folder / "record"))
    assert (result.returncode, result.stderr) == (0, "")
    lines = {one.name.split(".")[1]: one.read_text().splitlines()[1:] for one in folder.glob("record.*")}
    for one in folder.glob("record.*"):
        one.unlink()
    return lines


def ray_options(arguments: Sequence[str]) -> dict[str, Any]:
    """What `ray start` makes of its arguments; ends the test when it does not know one."""
    from ray.scripts.scripts import start

    assert arguments[0] == "start"
    with start.make_context("ray start", list(arguments[1:])) as context:
        return dict(context.params)


@pytest.mark.parametrize("name", ["head", "worker-m5", "worker-c5", "worker-g5"])
def test_ray_understands_the_command_line_of_each_node(name: str, tmp_path: Path) -> None:
    service = services()[name]
    arguments = recorded(tmp_path, service.command, service.environment)["ray"]
    options = ray_options(arguments)
    assert options["block"] is True
    assert options["head"] is (name == "head")
    assert options["address"] == (None if name == "head" else "head:6379")
    ports = [options[port] for port in options if port.endswith("_port") and options[port] is not None]
    assert len(set(ports)) == len(ports), "two servers cannot have one port"
    if name == "head":
        assert (options["port"], options["include_dashboard"], options["num_cpus"]) == (6379, False, 0)
    else:
        assert json.loads(options["resources"])
        assert options["port"] is None


@pytest.mark.parametrize("name", ["gateway", "deploy"])
def test_a_program_of_the_cluster_gets_a_node_that_offers_nothing(name: str, tmp_path: Path) -> None:
    service = services()[name]
    found = recorded(tmp_path, service.command, service.environment)
    assert found["aviary"] == list(service.command[2:])
    options = ray_options(found["ray"])
    assert (options["address"], options["block"]) == ("head:6379", False)
    assert (options["num_cpus"], options["num_gpus"], json.loads(options["resources"])) == (0, 0, {})


def test_a_program_without_a_cluster_says_which_variable_is_missing() -> None:
    result = run([DEPLOY / "with-ray-node", "aviary", "gateway"], RAY_ADDRESS="")
    assert result.returncode != 0
    assert "RAY_ADDRESS" in result.stderr


def test_ray_understands_what_kuberay_will_pass_it() -> None:
    (cluster,) = yaml.safe_load_all((DEPLOY / "kuberay" / "raycluster.yaml").read_text(encoding="utf-8"))
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        (resources,) = shlex.split(group["rayStartParams"].get("resources", "{}"))
        parameters = {**group["rayStartParams"], "resources": resources}
        assert ray_options(["start", "--address=aviary-head-svc:6379", *kuberay_flags(parameters)])


def kuberay_flags(parameters: Mapping[str, str]) -> Iterator[str]:
    """As KubeRay writes them: what is true or false is a flag without a value, but for one option."""
    for name, value in parameters.items():
        if value in ("true", "false") and name != "include-dashboard":
            yield from (f"--{name}",) if value == "true" else ()
        else:
            yield f"--{name}={value}"


def test_every_ray_variable_is_one_that_ray_knows() -> None:
    """Ray ignores those it does not know: a typing error would be found in the next outage."""
    import ray

    names = {name for service in services().values() for name in service.environment if name.startswith("RAY_")}
    for path in (DEPLOY / "kuberay").glob("*.yaml"):
        names |= {word.strip('",:{}') for word in path.read_text(encoding="utf-8").split() if word.startswith("RAY_")}
    core = Path(ray.__file__).parent
    binary = (core / "_raylet.so").read_bytes()
    folders = (core / "_private", core / "_common")
    python = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    known = set(re.findall(r"\bRAY_\w+", python))
    # Ray's settings are declared in its core: there the name, with or without its prefix, ends a string.
    unknown = {
        name
        for name in names - known
        if not any(f"{one}\0".encode() in binary for one in (name, name.removeprefix("RAY_")))
    }
    assert unknown == set()


def test_the_dockerfile_pleases_its_linter() -> None:
    result = run([tool("hadolint"), DEPLOY / "Dockerfile"])
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_please_their_linter(name: str) -> None:
    result = run([tool("shellcheck"), DEPLOY / name])
    assert (result.returncode, result.stdout) == (0, "")


def test_secrets_are_made_once_and_each_is_another(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets"
    shutil.copy(DEPLOY / "make-secrets", script)
    assert run([script]).returncode == 0
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == {"ray_auth_token", "redis_password", "grafana_password"}
    assert len(set(made.values())) == 3
    assert all(len(text) == 64 and int(text, 16) for text in made.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert run([script]).stdout == ""
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made


def test_the_image_without_torch_holds_all_that_its_commands_import() -> None:
    """`control` installs the extra `gateway` only: the commands must come up where nothing else can be imported."""
    import ray

    shipped_with_ray = {path.name for path in (Path(ray.__file__).parent / "thirdparty_files").iterdir()}
    absent = set(ALL_MODULES) - top_level_modules("aviary", {"gateway"}) - shipped_with_ray
    assert {"torch", "transformers", "numpy", "pytest"} <= absent
    result = run([sys.executable, "-c", IMPORT_WITHOUT, "aviary.cluster_commands", *sorted(absent)])
    assert (result.returncode, result.stderr) == (0, "")


def top_level_modules(name: str, extras: set[str]) -> set[str]:
    """What can be imported once a distribution and everything it requires is installed."""
    seen: set[str] = set()
    waiting = [(name, frozenset(extras))]
    while waiting:
        current, wanted = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for text in requires(current) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return {module for module, names in ALL_MODULES.items() if any(same(one, two) for one in names for two in seen)}


def same(one: str, two: str) -> bool:
    return one.lower().replace("_", "-") == two.lower().replace("_", "-")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
def test_prometheus_accepts_its_configuration() -> None:
    result = run(["promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml"])
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_kustomization_can_be_built() -> None:
    result = run(["kubectl", "kustomize", DEPLOY / "kuberay"])
    assert result.returncode == 0, result.stderr
    built = list(yaml.safe_load_all(result.stdout))
    assert {one["kind"] for one in built} >= {"RayCluster", "Deployment", "Job", "ConfigMap"}
    assert all(one["metadata"].get("namespace", "aviary") == "aviary" for one in built)
    (settings,) = [one for one in built if one["kind"] == "ConfigMap"]
    (job,) = [one for one in built if one["kind"] == "Job"]
    (volume,) = [one for one in job["spec"]["template"]["spec"]["volumes"] if "configMap" in one]
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
