"""The registry's commands answer at once: they load nothing heavy."""

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
