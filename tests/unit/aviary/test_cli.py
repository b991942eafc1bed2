"""The command line: what it accepts, what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from aviary.cli import parser, run
from model_registry.tables import JSON_SCHEMA

GOOD = """\
model_config:
  model_id: test/echo
  initialization:
    initializer:
      type: Echo
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AVIARY_REGISTRY", "AVIARY_MODELS", "AVIARY_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("aviary.ray_environment.prepare", lambda *_: None)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    (tmp_path / "test--echo.yaml").write_text(GOOD)
    return tmp_path


def test_each_command_names_a_function_that_exists() -> None:
    for command in ("serve", "deploy", "gateway", "status", "shutdown", "models", "simulate"):
        assert ":" in parser().parse_args([command]).command


def test_help_tells_the_exit_statuses_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for expected in ("exit status:", "AVIARY_MODELS", "RAY_ADDRESS", "serve", "validate", "130"):
        assert expected in text


@pytest.mark.parametrize("port", ["http", "-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(["serve", f"--port={port}"])
    assert exit_info.value.code == 2
    assert "is not a port" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["two", "0", "65"])
def test_a_number_of_processes_that_is_none_is_refused(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(["gateway", f"--workers={workers}"])
    assert exit_info.value.code == 2
    assert f"{workers} is no number of processes; give one from 1 to 64" in capsys.readouterr().err


def test_what_a_supervisor_runs_is_not_offered_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parser().parse_args(["gateway-process", "10", "3", "4", "5"])
    assert (parsed.supervisor_pid, parsed.life_fd, parsed.listener_fds) == (10, 3, [4, 5])
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "gateway-process" not in capsys.readouterr().out


def test_a_valid_file_and_folder_are_called_so(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", str(registry)]) == 0
    assert run(["validate", str(registry / "test--echo.yaml")]) == 0
    assert capsys.readouterr().out.count("1 valid model\n") == 2


def test_every_problem_of_a_folder_is_reported_at_once(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (registry / "test--typo.yaml").write_text(GOOD.replace("test/echo", "test/typo").replace("type:", "tipe:"))
    (registry / "test--empty.yaml").write_text("")
    assert run(["validate", str(registry)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("aviary: 2 problems")
    assert "test--typo.yaml: model_config.initialization.initializer" in error
    assert "test--empty.yaml" in error


def test_a_broken_registry_ends_every_other_command_with_2(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (registry / "test--echo.yaml").write_text("model_config: 3")
    assert run(["models", "--registry", str(registry)]) == 2
    assert "test--echo.yaml" in capsys.readouterr().err


def test_models_lists_what_the_registry_offers(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--registry", str(registry)]) == 0
    assert capsys.readouterr().out == "test/echo  Echo  1 GPU\n"


def test_each_model_is_listed_with_what_one_replica_runs_on(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deepspeed = GOOD.replace("test/echo", "test/large").replace("Echo", "DeepSpeed")
    (registry / "test--large.yaml").write_text(f"{deepspeed}scaling_config: {{num_workers: 4}}\n")
    (registry / "test--echo.yaml").write_text(f"{GOOD}scaling_config: {{num_gpus_per_worker: 0}}\n")
    assert run(["models", "--registry", str(registry)]) == 0
    small, large = capsys.readouterr().out.splitlines()
    assert small == "test/echo   Echo       1 CPU"
    assert large.startswith("test/large  DeepSpeed  4 GPUs")


def test_several_files_are_validated_at_once_and_the_good_ones_named(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = registry / "test--bad.yaml"
    bad.write_text(GOOD.replace("test/echo", "test/bad") + "oops: 1\nenabled: maybe\n")
    assert run(["validate", str(registry / "test--echo.yaml"), str(bad), str(tmp_path / "none")]) == 1
    output, error = capsys.readouterr()
    assert output == f"{registry / 'test--echo.yaml'}: 1 valid model\n"
    assert error.startswith("aviary: 3 problems")
    assert "test--bad.yaml: oops: unknown key" in error
    assert "test--bad.yaml: enabled: " in error
    assert "the registry folder does not exist" in error or "none" in error


def test_the_schema_for_editors_is_printed_as_it_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert capsys.readouterr().out == JSON_SCHEMA.read_text(encoding="utf-8")


def test_an_unknown_log_level_is_named(
    registry: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVIARY_LOG_LEVEL", "loud")
    assert run(["models", "--registry", str(registry)]) == 2
    assert capsys.readouterr().err.startswith("aviary: AVIARY_LOG_LEVEL=loud")
