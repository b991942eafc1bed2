"""The example of docs/simulate.md is what the command prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from aviary.cli import run

pytestmark = pytest.mark.parallel

PAGE = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def cells(table: str) -> list[str | float]:
    return [float(cell) if re.fullmatch(r"[\d.]+", cell) else cell for cell in table.split()]


def test_the_example_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aviary.ray_environment.prepare", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-models").mkdir()
    (tmp_path / "my-models" / "acme--chat-8b.yaml").write_text(block("yaml"))
    command, _, printed = block("console").replace("\\\n", "").partition("\n")
    assert run(shlex.split(command.removeprefix("$ aviary "))) == 0
    assert (tmp_path / "day.png").is_file()
    # Not to the digit: the last bit of a logarithm differs between machines, and a queue makes more of it.
    for actual, stated in zip(cells(capsys.readouterr().out), cells(printed), strict=True):
        assert actual == (pytest.approx(stated, rel=0.05) if isinstance(stated, float) else stated)
