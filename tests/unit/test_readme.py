"""What the README says is true: its example of a registry file loads, its variables exist, its defaults hold."""

from __future__ import annotations

import re
from pathlib import Path

from aviary.settings import DeploySettings
from gateway.settings import GatewaySettings
from model_registry.loader import load_registry

README = (Path(__file__).parents[2] / "README.md").read_text()
READ_ELSEWHERE = {"AVIARY_CACHE_DIR", "AVIARY_LOG_LEVEL", "RAY_ADDRESS"}


def block(language: str) -> str:
    """The one code block of this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


def variables() -> set[str]:
    rows = [line for line in README.splitlines() if line.startswith(("| `AVIARY_", "| `RAY_"))]
    return {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}


def test_its_registry_file_loads(tmp_path: Path) -> None:
    (tmp_path / "me--my-finetune.yaml").write_text(block("yaml"))
    entry = load_registry(tmp_path).entries["me/my-finetune"]
    assert entry.model.initialization.hf_model_id == "/models/my-finetune"
    assert entry.model.initialization.python_package is None
    assert entry.scaling.num_gpus_per_worker == 0


def test_its_python_example_is_python() -> None:
    compile(block("python"), "README.md", "exec")


def test_it_lists_every_variable_and_no_other() -> None:
    settings = {*GatewaySettings.model_fields, *DeploySettings.model_fields} - {"ray_address"}
    assert variables() == {f"AVIARY_{name.upper()}" for name in settings} | READ_ELSEWHERE


def test_the_defaults_it_names_hold() -> None:
    defaults = {f"AVIARY_{name.upper()}": field.default for name, field in GatewaySettings.model_fields.items()}
    for row in (line.split("|") for line in README.splitlines() if line.startswith("| `AVIARY_")):
        names, stated = re.findall(r"`([A-Z_]+)`", row[1]), row[3].replace("`", "").split(",")
        for name, value in zip(names, stated, strict=False):
            if name in defaults:
                number = value.strip().removesuffix(" MiB")
                factor = 2**20 if "MiB" in value else 1
                default = "" if defaults[name] is None else str(defaults[name])
                assert default.removesuffix(".0") == (number if factor == 1 else str(int(number) * factor))
