"""Traces: read from CSV with every problem named, or made to order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from aviary.errors import UsageError
from aviary.simulation.trace import Trace, read_traces
from aviary.simulation.workload import Workload, synthetic_trace


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_requests_are_sorted_and_begin_at_zero(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival_s,prompt_tokens,output_tokens\n1012.5,30,3\n1010,10,1\n")
    trace = read_traces(path, ["a/b"])["a/b"]
    assert (list(trace.arrivals), list(trace.prompt_tokens), list(trace.output_tokens)) == ([0, 2.5], [10, 30], [1, 3])
    assert trace.duration_s == 2.5


def test_models_share_one_beginning_and_one_duration(tmp_path: Path) -> None:
    path = written(tmp_path, "model,arrival_s,prompt_tokens,output_tokens,note\na/b,5,1,1,x\nc/d,7,1,1,\na/b,9,1,1,\n")
    traces = read_traces(path, ["a/b", "c/d"])
    assert {model_id: list(trace.arrivals) for model_id, trace in traces.items()} == {"a/b": [0, 4], "c/d": [2]}
    assert {trace.duration_s for trace in traces.values()} == {4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column arrival_s, prompt_tokens, output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n", "has no requests"),
        ("arrival_s,prompt_tokens\n1,2\n", "has no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2,3\nx,2,3\n", "trace.csv:3: arrival_s is 'x'"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,2,3\n", "arrival_s is 'nan'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,0,3\n", "trace.csv:2: prompt_tokens is '0'"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2\n", "output_tokens is None"),
        ("model,arrival_s,prompt_tokens,output_tokens\nx/y,1,2,3\n", "x/y is none of the models a/b"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_traces(written(tmp_path, text), ["a/b"])


def test_two_models_need_a_column_that_tells_them_apart(tmp_path: Path) -> None:
    path = written(tmp_path, "arrival_s,prompt_tokens,output_tokens\n1,2,3\n")
    with pytest.raises(UsageError, match="no column model"):
        read_traces(path, ["a/b", "c/d"])


@pytest.mark.parametrize("name", ["none.csv", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        read_traces(tmp_path / name, ["a/b"])


def num_between(trace: Trace, start: float, end: float) -> int:
    return sum(start <= arrival < end for arrival in trace.arrivals)


def test_a_synthetic_trace_has_the_rate_and_the_lengths_that_are_asked_for() -> None:
    workload = Workload(requests_per_s=5.0, duration_s=4000.0, prompt_tokens=700, output_tokens=50, spread=0.8)
    trace = synthetic_trace(workload, "x")
    assert len(trace) == pytest.approx(20_000, rel=0.02)
    assert sum(trace.prompt_tokens) / len(trace) == pytest.approx(700, rel=0.03)
    assert sum(trace.output_tokens) / len(trace) == pytest.approx(50, rel=0.03)
    assert list(trace.arrivals) == sorted(trace.arrivals)
    assert synthetic_trace(Workload(requests_per_s=1.0, duration_s=50.0, spread=0.0), "x").prompt_tokens[0] == 500


def test_its_load_is_lowest_at_the_ends_and_highest_in_the_middle() -> None:
    trace = synthetic_trace(Workload(requests_per_s=10.0, duration_s=1000.0, swing=0.9), "x")
    assert len(trace) == pytest.approx(10_000, rel=0.05)
    assert num_between(trace, 450, 550) == pytest.approx(1_885, rel=0.1)
    assert num_between(trace, 0, 50) + num_between(trace, 950, 1000) == pytest.approx(115, rel=0.3)


def test_bursts_multiply_the_load_while_they_last() -> None:
    calm = Workload(requests_per_s=5.0, duration_s=2400.0)
    bursty = Workload(requests_per_s=5.0, duration_s=2400.0, bursts_per_hour=5, burst_factor=10, burst_s=30)
    trace = synthetic_trace(bursty, "x")
    counts = Counter(int(arrival // 10) for arrival in trace.arrivals)
    assert max(counts.values()) > 400
    assert sorted(counts.values())[len(counts) // 2] < 70
    assert len(trace) > 1.1 * len(synthetic_trace(calm, "x"))


def test_the_same_seed_gives_the_same_trace() -> None:
    workload = Workload(requests_per_s=5.0, duration_s=100.0, swing=0.5, bursts_per_hour=50)
    assert synthetic_trace(workload, "1") == synthetic_trace(workload, "1") != synthetic_trace(workload, "2")
