"""The registry's commands answer at once, and a supervisor stays small: they load nothing heavy."""

from __future__ import annotations

import subprocess
import sys

from model_registry.loader import ZOO


def test_reading_the_registry_imports_neither_ray_nor_a_web_framework() -> None:
    code = (
        "import sys; from aviary.cli import run; status = run(['models', '--registry', sys.argv[1]]); "
        "sys.exit(', '.join({'ray', 'torch', 'fastapi', 'grpc'} & set(sys.modules)) or status)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(ZOO)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_supervisor_of_gateways_is_neither_a_gateway_nor_in_the_cluster() -> None:
    code = (
        "import sys, aviary.gateway_command; "
        "sys.exit(', '.join({'ray', 'torch', 'fastapi', 'uvicorn', 'grpc'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
