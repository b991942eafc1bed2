"""The gateway against its own OpenAPI document: schemathesis sends what conforms to it and what does not, over HTTP.

Whatever comes, nothing fails, errors are OpenAI's objects, replies and the events of streams are as documented, what
conforms is served, and what does not is refused. Metrics and health are asked like the rest; the admin endpoint, which
has no key here, stays closed. `make test` does it briefly, `make fuzz` for long and with new examples each time.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.channel import GrpcChannel
from gateway.endpoint import EXAMPLE_MODEL
from model_registry.schema import RegistryEntry
from tests.support.live_gateway import LiveGateway
from tests.support.live_worker import LiveWorker
from tests.support.scripted_pool import SECRET, pool_view
from workers.initializers import build_engine, initializer_for

pytestmark = pytest.mark.parallel

ROOT = Path(__file__).parents[2]
NUM_EXAMPLES = 50
NUM_EXAMPLES_LONG = 5000
"""Of each operation, besides the thousand that follow from the document's bounds."""
REPLACED_CHECK = "positive_data_acceptance"
"""By one of ours, which knows what a schema cannot say."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    entry = RegistryEntry.model_validate(
        {
            "model_config": {
                "model_id": EXAMPLE_MODEL,
                "initialization": {"initializer": {"type": "Echo"}},
                "generation": {"max_model_len": 256},
            }
        }
    )
    engine = build_engine(entry, initializer_for(entry).load(entry, lambda line: None))
    with (
        LiveWorker(engine, SECRET) as worker,
        LiveGateway(
            {}, view=pool_view(worker.view(entry)), connect=GrpcChannel, files=tmp_path_factory.mktemp("files")
        ) as gateway,
    ):
        yield gateway


def fuzz(gateway: LiveGateway, num_examples: int, seed: int, folder: Path) -> None:
    options = {
        "--max-examples": str(num_examples),
        "--seed": str(seed),
        "--phases": "examples,coverage,fuzzing",
        "--exclude-checks": REPLACED_CHECK,
        "--suppress-health-check": "filter_too_much",
        "--warnings": "off",
        "--report-dir": str(folder),
    }
    command = [str(Path(sys.executable).with_name("st")), "run", f"{gateway.url}/openapi.json", "--continue-on-failure"]
    done = subprocess.run(
        [*command, *(part for option in options.items() for part in option)],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.support.fuzz_hooks", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 generated" not in done.stdout


@pytest.mark.timeout(300)
def test_what_the_document_allows_is_served_and_all_else_is_refused_in_openais_form(
    gateway: LiveGateway, tmp_path: Path
) -> None:
    fuzz(gateway, NUM_EXAMPLES, seed=1, folder=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_so_it_is_with_thousands_of_examples(gateway: LiveGateway, tmp_path: Path) -> None:
    fuzz(gateway, NUM_EXAMPLES_LONG, seed=secrets.randbelow(2**31), folder=tmp_path)
