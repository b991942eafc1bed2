"""What a worker's process needs beside its node's own Python: the rules of Ray's runtime environments, without Ray.

Pure checks and one merge, so that what Ray would refuse only on a node is refused when the file is read. Used by the
schema; the pool adds its own variables and hands the result to Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

INSTALLERS: Final = ("pip", "uv")
REMOTE_SCHEMES: Final = ("http", "https", "s3", "gs", "azure", "abfss", "file")
ARCHIVES: Final = (".zip", ".tar.gz", ".tgz", ".tar.xz")
LOCAL_SCHEME: Final = "local"

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_requirement(requirement: str) -> str:
    if not requirement.strip() or "\n" in requirement:
        raise ValueError("is not one requirement; write one per line of the list, such as einops==0.8.1")
    return requirement


def check_env_vars(env_vars: dict[str, str]) -> dict[str, str]:
    for name, value in env_vars.items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f'"{name}" is not a name of an environment variable')
        if "\0" in value:
            raise ValueError(f"{name} holds a NUL character, which no environment variable can")
    return env_vars


def check_working_dir(working_dir: str) -> str:
    """An absolute folder that every node has, or the URI of an archive that every node can fetch."""
    parts = urlsplit(working_dir)
    if not parts.scheme or parts.scheme == LOCAL_SCHEME:
        path = parts.path if parts.scheme else working_dir
        if PurePosixPath(path).is_absolute() and not parts.netloc:
            return working_dir
        raise ValueError(f'"{working_dir}" is not absolute; a folder must be given as it is found on every node')
    if parts.scheme not in REMOTE_SCHEMES:
        raise ValueError(f'"{working_dir}" is neither an absolute folder nor a URI of {", ".join(REMOTE_SCHEMES)}')
    if not parts.path.endswith(ARCHIVES):
        raise ValueError(f'"{working_dir}" is not an archive ({", ".join(ARCHIVES)}); pack the folder into one')
    return working_dir


def check_installers(runtime_env: Mapping[str, Any]) -> None:
    """Raises `ValueError` when packages shall be installed in two ways at once, which Ray cannot do."""
    if all(runtime_env.get(installer) for installer in INSTALLERS):
        raise ValueError("pip and uv are both given, and a process has one installer; keep one of them")


def merged(first: Mapping[str, Any], second: Mapping[str, Any], *, paths: tuple[str, str]) -> dict[str, Any]:
    """Both environments as one; variables join. Raises `ValueError` naming both places where they contradict.

    `paths` are the key paths of the two, for the message.
    """
    for key, value in _flat(first).items():
        if _flat(second).get(key, value) != value:
            places = " and ".join(f"{path}.{key}" for path in paths)
            raise ValueError(f"{places} differ, and worker 0 has one environment; give it once, or the same in both")
    result = {**first, **second}
    if all(result.get(installer) for installer in INSTALLERS):
        places = " and ".join(f"{paths[0] if key in first else paths[1]}.{key}" for key in INSTALLERS)
        raise ValueError(f"{places} contradict each other: a process has one installer; use the same")
    env_vars = {**first.get("env_vars", {}), **second.get("env_vars", {})}
    return {**result, "env_vars": env_vars} if env_vars else result


def _flat(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Its values by key, each variable under a key of its own."""
    env_vars = runtime_env.get("env_vars", {})
    others = {key: value for key, value in runtime_env.items() if key != "env_vars"}
    return {**others, **{f"env_vars.{name}": value for name, value in env_vars.items()}}
