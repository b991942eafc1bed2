"""The environment that Ray and gRPC shall see. They read it when imported, so the command line sets it before that.

Knows names and values only, and never changes what the operator has set.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

DEFAULTS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray ends a process that has lost the cluster's head for so long; its default of 60 s is shorter than a restart.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # Workers start when they are needed: idle ones cost seconds and memory on a laptop.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A channel that a worker closes is logged by the gateway in its own words.
    "GRPC_VERBOSITY": "ERROR",
}


def prepare(environment: MutableMapping[str, str], home: Path) -> None:
    """Set what is not set. Whoever has an authentication token uses it, as `ray start` does."""
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)
    token_file = environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token"
    if environment.get("RAY_AUTH_TOKEN") or Path(token_file).is_file():
        environment.setdefault("RAY_AUTH_MODE", "token")
