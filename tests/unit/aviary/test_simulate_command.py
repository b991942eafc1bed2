"""`aviary simulate`: from registry files and flags to a table and a picture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from aviary.cli import run
from aviary.errors import UsageError
from aviary.simulation.outcome import Outcome, percentile
from aviary.simulation.replica import Ending
from aviary.simulation.table import table_of
from aviary.simulation.variants import read_comparison, variants_of
from model_registry.schema import RegistryEntry

FILE = """\
deployment_config:
  autoscaling_config:
    max_replicas: 4
    target_ongoing_requests: 2
model_config:
  model_id: test/model
  initialization:
    initializer:
      type: Echo
  generation:
    max_batch_size: 4
"""
SHORT = ("--requests-per-s=1", "--hours=0.2")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AVIARY_REGISTRY", "AVIARY_MODELS", "AVIARY_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("aviary.ray_environment.prepare", lambda *_: None)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "test--model.yaml").write_text(FILE)
    return folder


def simulate(registry: Path, *flags: str) -> int:
    return run(["simulate", f"--registry={registry}", *flags])


def test_settings_are_shown_side_by_side(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(registry, *SHORT, "--compare=max_replicas=1,4", "--price-per-hour=2.5") == 0
    header, one, four = capsys.readouterr().out.splitlines()
    assert re.split(r" {2,}", header) == [
        "MODEL", "SETTINGS", "REQUESTS", "429", "TTFT P50", "P99", "LATENCY P50", "P99", "REPLICA-H", "COST", "PEAK",
    ]  # fmt: skip
    assert one.split()[:2] == ["test/model", "max_replicas=1"]
    assert four.split()[:2] == ["test/model", "max_replicas=4"]
    assert (one.split()[-1], four.split()[-1]) == ("1", "4")
    hours, cost = map(float, one.split()[-3:-1])
    assert cost == pytest.approx(2.5 * hours, abs=0.15)


def test_the_same_command_prints_the_same(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("1", "1", "2"):
        assert simulate(registry, *SHORT, f"--seed={seed}") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(
    "slower",
    ["--step-ms=100", "--step-per-sequence-ms=100", "--prefill-tokens-per-s=300", "--output-tokens=800",
     "--prompt-tokens=20000"],
)  # fmt: skip
def test_each_of_these_makes_requests_take_longer(
    registry: Path, slower: str, capsys: pytest.CaptureFixture[str]
) -> None:
    medians = []
    for flags in ((), (slower,)):
        assert simulate(registry, "--requests-per-s=0.3", "--hours=0.2", "--spread=0", *flags) == 0
        medians.append(float(capsys.readouterr().out.splitlines()[1].split()[4]))
    assert medians[1] > 1.2 * medians[0]


@pytest.mark.parametrize("flag", ["--cold-start-s=1", "--request-timeout-s=2", "--swing=0.9", "--bursts-per-hour=60",
                                  "--spread=0.1"])  # fmt: skip
def test_each_of_these_changes_what_comes_of_it(registry: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for flags in ((), (flag,)):
        assert simulate(registry, *SHORT, *flags) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize("flag", ["--burst-factor=20", "--burst-s=5"])
def test_bursts_may_be_of_another_kind(registry: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for flags in ((), (flag,)):
        assert simulate(registry, *SHORT, "--bursts-per-hour=30", *flags) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] != outputs[1]


def test_a_recorded_trace_is_simulated(registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,10\n60,10,10\n")
    assert simulate(registry, f"--trace={trace}", "--step-ms=20", "--price-per-hour=60") == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["test/model", "2", "0", "0.02"]


def test_a_recorded_trace_and_a_synthetic_one_are_not_mixed(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(registry, f"--trace={tmp_path}/trace.csv", "--hours=3", "--burst-s=3") == 2
    assert "--hours, --burst-s describe a synthetic trace" in capsys.readouterr().err


def test_bursts_are_not_described_where_there_are_none(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(registry, *SHORT, "--burst-factor=3") == 2
    assert "add --bursts-per-hour" in capsys.readouterr().err


def test_a_picture_needs_an_extra_which_is_named_before_anything_is_simulated(
    registry: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aviary.simulation.plot", None)
    assert simulate(registry, *SHORT, "--plot=load.png") == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert "pip install 'aviary[simulate]'" in error


def test_the_kv_cache_is_only_simulated_where_its_size_is_known(
    registry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(registry, *SHORT, "--compare=target_kv_cache_usage=0.5") == 2
    assert "set generation.kv_cache_tokens" in capsys.readouterr().err
    assert simulate(registry, *SHORT, "--compare=target_kv_cache_usage=0.5", "--compare=kv_cache_tokens=20000") == 0


@pytest.mark.parametrize(
    "flag",
    [
        "--hours=0",
        "--hours=x",
        "--swing=1.5",
        "--spread=-1",
        "--step-ms=nan",
        "--price-per-hour=inf",
        "--burst-factor=1",
    ],
)
def test_a_number_out_of_range_is_refused(registry: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        simulate(registry, flag)
    assert exit_info.value.code == 2
    assert "is out of range; give a number" in capsys.readouterr().err


# Variants

ENTRY = RegistryEntry.model_validate(
    {
        "model_config": {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}},
        "deployment_config": {"autoscaling_config": {"max_replicas": 4, "target_ongoing_requests": 2}},
    }
)


def variants(*comparisons: str) -> dict[str, RegistryEntry]:
    return {one.label: one.entry for one in variants_of(ENTRY, [read_comparison(text) for text in comparisons])}


def test_without_a_comparison_there_is_the_file_as_it_is() -> None:
    assert variants() == {"": ENTRY}


def test_every_combination_of_values_is_one_variant() -> None:
    found = variants("upscale_delay_s=5,10.5", "max_ongoing_requests=8,null")
    assert {
        label: (one.deployment.autoscaling_config.upscale_delay_s, one.deployment.max_ongoing_requests)
        for label, one in found.items()
    } == {
        "upscale_delay_s=5 max_ongoing_requests=8": (5, 8),
        "upscale_delay_s=5 max_ongoing_requests=null": (5, None),
        "upscale_delay_s=10.5 max_ongoing_requests=8": (10.5, 8),
        "upscale_delay_s=10.5 max_ongoing_requests=null": (10.5, None),
    }


def test_a_target_takes_the_place_of_the_files() -> None:
    (tokens,) = variants("target_ongoing_tokens=4000").values()
    assert tokens.deployment.autoscaling_config.target_ongoing_tokens == 4000
    (both,) = variants("target_ongoing_tokens=4000", "target_kv_cache_usage=0.5").values()
    assert both.deployment.autoscaling_config.target_ongoing_tokens == 4000
    assert both.deployment.autoscaling_config.target_kv_cache_usage == 0.5
    (old,) = variants("target_num_ongoing_requests_per_replica=7").values()
    assert old.deployment.autoscaling_config.target_ongoing_requests == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_replicas", "has no values"),
        ("max_replicas=,", "has no values"),
        ("model_id=x", "is no setting that a simulation feels; known: min_replicas"),
        ("max_replicas=0", "a/b cannot have max_replicas=0: .*greater than or equal to 1"),
        ("min_replicas=9", r"a/b cannot have min_replicas=9: .*min_replicas \(9\)"),
        ("upscale_delay_s=soon", "a/b cannot have upscale_delay_s=soon"),
        (f"max_replicas={','.join(map(str, range(1, 70)))}", "asks for 69 variants, more than 64"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        variants(text)


# Table


def test_columns_that_would_say_nothing_are_left_out() -> None:
    outcome = Outcome(
        model_id="a/b", endings={Ending.DONE: 3, Ending.FULL: 1, Ending.EXPIRED: 2, Ending.TOO_LONG: 4},
        first_token_s=[0.1, 0.2, 3.0], latency_s=[1.0, 2.0, 30.0], duration_s=10.0, replica_s=7200.0, peak_replicas=3,
        decisions=[], moments=[],
    )  # fmt: skip
    assert table_of([("x=1", outcome)], 1.5) == [
        "MODEL  SETTINGS  REQUESTS  429  504  400  TTFT P50   P99  LATENCY P50    P99  REPLICA-H  COST  PEAK",
        "a/b    x=1             10    1    2    4      0.20  3.00         2.00  30.00        2.0  3.00     3",
    ]
    assert "COST" not in table_of([("", outcome)], None)[0]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.51, 0.99, 1.0)] == [1, 2, 3, 4, 4]
    assert percentile([], 0.5) is None
