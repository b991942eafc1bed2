"""docker-compose.yml as a container engine would read it: each service's command and environment, variables replaced.

Knows only what the tests need. The namespaces of the cluster tests run what it gives; unit tests look at it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from aviary.settings import DeploySettings
from gateway.settings import GatewaySettings

ROOT: Final = Path(__file__).parents[2]
COMPOSE_FILE: Final = ROOT / "docker-compose.yml"
OTHER_VARIABLES: Final = {"HF_HOME", "HF_TOKEN", "AVIARY_CACHE_DIR", "AVIARY_LOG_LEVEL"}
"""Read by the Hub's client, by the sources of weights, and by the command line before its settings."""
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?:(:?-)([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as its container would get it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    raw: Mapping[str, Any]


def variables(text: str) -> set[str]:
    """Names that the file takes from the environment of whoever runs it."""
    return {match[1] for match in _VARIABLE.finditer(text) if match[1]}


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """`${NAME}`, `${NAME-default}` and `${NAME:-default}` replaced; `$$` is a dollar."""

    def value(match: re.Match[str]) -> str:
        name, operator, default = match[1], match[2], match[3]
        if name is None:
            return "$"
        given = environment.get(name)
        return default or "" if given is None or (operator == ":-" and not given) else given

    return _VARIABLE.sub(value, text)


def compose_document(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole file, as `docker compose config` would show it."""
    return deepcopy(_document(frozenset((environment or {}).items())))


@cache
def _document(environment: frozenset[tuple[str, str]]) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE_FILE.read_text(encoding="utf-8"), dict(environment)))
    return document


def services(environment: Mapping[str, str] | None = None) -> dict[str, Service]:
    """Every service by name, whatever its profile."""
    return {
        name: Service(
            name,
            tuple(str(part) for part in raw.get("command", ())),
            {key: str(value) for key, value in raw.get("environment", {}).items()},
            raw,
        )
        for name, raw in compose_document(environment)["services"].items()
    }


def settings_variables() -> set[str]:
    """Every variable that some part of Aviary reads."""
    fields = {*GatewaySettings.model_fields, *DeploySettings.model_fields}
    return {f"AVIARY_{name.upper()}" for name in fields} | OTHER_VARIABLES


def num_bytes(size: str) -> int:
    """A size as compose writes it: `256m`, `1g`."""
    return int(size[:-1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[size[-1]]


def num_seconds(duration: str) -> float:
    """A duration as compose writes it: `45s`, `30m`."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]
