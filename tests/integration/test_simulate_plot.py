"""The picture of `aviary simulate`, drawn by matplotlib, which takes a second to import."""

from __future__ import annotations

from pathlib import Path

import pytest

from aviary.cli import run
from model_registry.loader import ZOO

pytestmark = pytest.mark.parallel


def test_a_picture_is_drawn_or_why_not_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aviary.ray_environment.prepare", lambda *_: None)
    command = ["simulate", f"--registry={ZOO}", "--models=aviary/echo", "--hours=0.1", "--compare=max_replicas=1,4"]
    assert run([*command, f"--plot={tmp_path}/load.png"]) == 0
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert run([*command, f"--plot={tmp_path}/none/load.png"]) == 1
    assert "none/load.png: cannot be written" in capsys.readouterr().err
