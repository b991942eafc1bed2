"""What cannot start says why in one clear line, or one list, and starts nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Server, echo_entry, environment, free_port, write_registry

pytestmark = pytest.mark.timeout(180)


def serve(**settings: str) -> tuple[int, list[str]]:
    """Exit status and lines of stderr of a `serve` that should not come up."""
    result = subprocess.run(
        [sys.executable, "-m", "aviary", "serve"],
        env=environment(**{"AVIARY_PORT": str(free_port()), **settings}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.returncode, result.stderr.strip().splitlines()


def test_a_bad_registry_is_one_list_of_everything_wrong_in_it(tmp_path: Path) -> None:
    registry = write_registry(tmp_path, echo_entry("tests/good"))
    (tmp_path / "tests--empty.yaml").write_text("")
    (tmp_path / "tests--latin.yaml").write_bytes(b"model_config: {model_id: caf\xe9}")
    (tmp_path / "tests--bomb.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    unknown = echo_entry("tests/typo")
    unknown["model_config"]["generation"]["max_batch_sice"] = 1
    unknown["scaling_config"]["num_workers"] = "two"
    write_registry(tmp_path, unknown)
    status, lines = serve(AVIARY_REGISTRY=str(registry))
    text = "\n".join(lines)
    assert status == 2
    for expected in (
        "tests--empty.yaml",
        "tests--latin.yaml",
        "tests--bomb.yaml",
        "model_config.generation.max_batch_sice",
        "scaling_config.num_workers",
    ):
        assert expected in text
    assert "Traceback" not in text


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, lines = serve(AVIARY_PORT=str(taken.getsockname()[1]))
    assert status == 2
    assert len(lines) == 1
    assert "AVIARY_PORT" in lines[0]


def test_an_absent_ray_head_is_one_line() -> None:
    status, lines = serve(RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    assert status == 2
    assert len(lines) == 1
    assert "no Ray head answers" in lines[0]


def test_an_unknown_model_lists_the_known_ones() -> None:
    status, lines = serve(AVIARY_MODELS="nobody/nothing")
    assert status == 2
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in "\n".join(lines)


def test_a_model_that_asks_for_what_nothing_could_honour_is_refused_by_key(tmp_path: Path) -> None:
    asking = echo_entry("tests/asking")
    asking["model_config"]["initialization"]["hf_model_id"] = "nobody/weights"
    status, lines = serve(AVIARY_REGISTRY=str(write_registry(tmp_path / "registry", asking)))
    assert status == 2
    assert "model_config.initialization.hf_model_id: means nothing for Echo" in "\n".join(lines)


def test_a_missing_model_folder_is_the_models_reason_and_leaves_the_others_alone(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    missing = echo_entry("tests/missing")
    missing["model_config"]["initialization"] = {
        "hf_model_id": str(tmp_path / "nowhere"),
        "initializer": {"type": "SingleDevice", "dtype": "float32"},
    }
    registry = write_registry(tmp_path / "registry", missing, echo_entry("tests/good"))
    server = start(AVIARY_REGISTRY=str(registry))
    server.wait_until(lambda: server.model("tests/missing")["state"] == "failed", timeout_s=60)
    assert "nowhere" in server.model("tests/missing")["reason"]
    refused = httpx.post(f"{server.url}/v1/completions", json={"model": "tests/missing", "prompt": "x"})
    assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "nowhere" in refused.json()["error"]["message"]
    assert "retry-after" in refused.headers
    answered = httpx.post(f"{server.url}/v1/completions", json={"model": "tests/good", "prompt": "x"})
    assert answered.json()["choices"][0]["text"] == "x"


def test_a_model_that_fits_on_no_node_says_what_it_needs(start: Callable[..., Server], tmp_path: Path) -> None:
    unplaceable = echo_entry("tests/unplaceable")
    unplaceable["scaling_config"]["resources_per_worker"] = {"instance_type_g5": 0.01}
    registry = write_registry(tmp_path / "registry", unplaceable, echo_entry("tests/good"))
    server = start(AVIARY_REGISTRY=str(registry))
    server.wait_until(lambda: "instance_type_g5" in (server.model("tests/unplaceable")["reason"] or ""), timeout_s=60)
    assert "no node offers instance_type_g5" in server.model("tests/unplaceable")["reason"]
