"""Programs that other people wrote for OpenAI's API work here, set up as docs/clients.md says.

What it shows is what runs: each client's whole program, against the echo engine, whose answers are known, and against
SmolLM2, which says something sensible. The clients' versions are pinned in tests/clients.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.support.client_environments import LISTS, NODE, node_modules, python_environment, with_programs
from tests.support.conformance_cases import ECHO, SMOLLM2

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
CITIES = {"London", "Paris", "Rome"}
NUM_DIMENSIONS = {ECHO: 258, SMOLLM2: 576}
ADDRESS = "http://127.0.0.1:8000"
PAGE = (Path(__file__).parents[3] / "docs" / "clients.md").read_text()
PROGRAM_TIMEOUT_S = 180.0

pytestmark = pytest.mark.timeout(900)  # the first start may have to fetch the model, and the clients


def section(heading: str) -> str:
    (_, found) = PAGE.split(f"\n## {heading}\n")
    return found.split("\n## ")[0]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(heading), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Program:
    """A client's program, as the page has it."""

    environment: str
    source: str

    def run(self, server: Server, model: str, folder: Path) -> Said:
        source = self.source.replace(ADDRESS, server.url).replace(SMOLLM2, model)
        if self.environment == NODE:
            command, file = "node", folder / "program.mjs"
            (folder / "node_modules").symlink_to(node_modules())
        else:
            command, file = "python", folder / "program.py"
        file.write_text(source)
        variables = with_programs(python_environment(self.environment))
        return _said([command, str(file)], variables)


@dataclass(frozen=True, slots=True)
class Said:
    """What a program printed: lines that begin with a label, and all that follows them."""

    output: str
    errors: str

    def __getitem__(self, label: str) -> str:
        found = re.search(rf"^{label}: (.*?)(?=^[a-z ]+: |\Z)", self.output, re.MULTILINE | re.DOTALL)
        assert found, f"it never said '{label}':\n{self.output}\n{self.errors}"
        return found[1].strip()


def _said(command: list[str], variables: dict[str, str]) -> Said:
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
    return Said(ran.stdout, ran.stderr)


(LANGCHAIN,) = blocks("LangChain", "python")
BEFORE, AFTER = LANGCHAIN.split("stream_usage=True")
(LLAMA_INDEX,) = blocks("LlamaIndex", "python")
COMPATIBLE, AI_SDK, OPENAIS_OWN = blocks("Vercel's AI SDK", "javascript")
PROGRAMS = {
    "LangChain": Program("langchain", LANGCHAIN),
    "LangChain, responses": Program("langchain", f"{BEFORE}use_responses_api=True{AFTER}"),
    "LlamaIndex": Program("llama_index", LLAMA_INDEX),
    "AI SDK": Program(NODE, COMPATIBLE + AI_SDK),
    "AI SDK, responses": Program(NODE, OPENAIS_OWN + AI_SDK),
}
RUNS = [*((name, ECHO) for name in PROGRAMS), *((name, SMOLLM2) for name in ("LangChain", "LlamaIndex", "AI SDK"))]
EVERY_RUN = pytest.mark.parametrize(("name", "model"), RUNS)

Transcripts = dict[tuple[str, str], Said]


@pytest.fixture(scope="module")
def said(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Transcripts:
    """What every program says, several running beside each other, by its name and the model it talks to."""
    folders = [tmp_path_factory.mktemp("program") for _ in RUNS]

    def run(one: tuple[str, str], folder: Path) -> Said:
        name, model = one
        return PROGRAMS[name].run(server, model, folder)

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(RUNS, pool.map(run, RUNS, folders), strict=True))


@EVERY_RUN
def test_a_client_gets_an_answer_whole_and_streamed(said: Transcripts, name: str, model: str) -> None:
    told = said[name, model]
    answer, num_tokens = (QUESTION, len(QUESTION) + 1) if model == ECHO else (ANSWER, 8)
    assert told["answer"] == answer
    assert told["stream"] == answer
    assert told["tokens"] == str(num_tokens)


@EVERY_RUN
def test_a_client_gets_the_call_that_it_asks_for(said: Transcripts, name: str, model: str) -> None:
    function, city = said[name, model]["call"].split()
    assert function == "get_weather"
    assert city in CITIES


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_client_sends_back_the_result_of_its_call(said: Transcripts, name: str) -> None:
    told = said[name, ECHO]
    _, city = told["call"].split()
    assert f'"arguments": {{"city": "{city}"}}' in told["after it"]
    assert f"<tool_response>\nsunny in {city}\n</tool_response>" in told["after it"]


@EVERY_RUN
def test_a_client_gets_an_object_that_fits_its_schema(said: Transcripts, name: str, model: str) -> None:
    city = json.loads(said[name, model]["object"])
    assert set(city) == {"name", "is_capital"}
    assert len(city["name"]) <= 20
    assert city["is_capital"] in (True, False)


@EVERY_RUN
def test_a_client_gets_an_embedding(said: Transcripts, name: str, model: str) -> None:
    assert said[name, model]["dimensions"] == str(NUM_DIMENSIONS[model])


GOES_ON = """
import { generateText } from "ai";
for (const store of [true, false]) {
  const settings = { model: aviary("HuggingFaceTB/SmolLM2-135M-Instruct"), providerOptions: { openai: { store } } };
  const { response } = await generateText({ ...settings, prompt: "one" });
  const messages = [{ role: "user", content: "one" }, ...response.messages, { role: "user", content: "two" }];
  console.log(`${store}:`, (await generateText({ ...settings, messages })).text);
}
"""


def test_a_conversation_goes_on_by_ids_where_answers_are_kept_and_by_texts(server: Server, tmp_path: Path) -> None:
    told = Program(NODE, OPENAIS_OWN + GOES_ON).run(server, ECHO, tmp_path)
    assert (told["true"], told["false"]) == ("one\none\ntwo", "one\none\ntwo")


# The llm command


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Callable[..., Said]:
    """Runs it with the page's models, each talking to the given one."""
    (models,) = blocks("The llm command", "yaml")
    variables = with_programs(python_environment("llm")) | {"LLM_USER_PATH": str(tmp_path)}

    def run(command: list[str], model: str) -> Said:
        text = models.replace(ADDRESS, server.url).replace(SMOLLM2, model)
        (tmp_path / "extra-openai-models.yaml").write_text(text)
        return _said(command, variables)

    return run


def commands() -> list[list[str]]:
    (console,) = blocks("The llm command", "console")
    return [shlex.split(line.removeprefix("$ ")) for line in console.splitlines()]


def test_the_llm_command_gets_an_answer_whole_and_streamed_and_an_object(llm: Callable[..., Said]) -> None:
    streamed, whole, described = commands()
    assert "--no-stream" in whole
    for model, answer in ((ECHO, QUESTION), (SMOLLM2, ANSWER)):
        assert llm(streamed, model).output == f"{answer}\n"
        assert llm(whole, model).output == f"{answer}\n"
    assert set(json.loads(llm(described, ECHO).output)) == {"name", "is_capital"}


def test_the_llm_command_makes_the_calls_of_an_answer_and_sends_back_the_results(llm: Callable[..., Said]) -> None:
    """The echo makes the call that it is told, in its second answer too: so the limit is what ends it."""
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    function = "def get_weather(city: str) -> str: return f'sunny in {city}'"
    command = ["llm", "-m", "smollm2", call, "--functions", function, "--tools-debug", "--chain-limit", "2"]
    told = llm(command, ECHO)
    assert "Tool call: get_weather({'city': 'Rome'})\n  sunny in Rome" in told.errors
    assert "<tool_response>\nsunny in Rome\n</tool_response>" in told.output
    assert told.errors.endswith("Error: Chain limit of 2 exceeded.\n")


# The page


@pytest.mark.parametrize(
    ("heading", "name"), [("LangChain", "langchain"), ("LlamaIndex", "llama_index"), ("The llm command", "llm")]
)
def test_the_page_says_to_install_what_is_tested(heading: str, name: str) -> None:
    (packages,) = re.findall(r"`pip install (.*?)`", section(heading))
    assert packages.split() == (LISTS / f"{name}.in").read_text().split()


def test_the_page_says_to_install_what_is_tested_of_npm() -> None:
    packages = " ".join(re.findall(r"`npm install (.*?)`", section("Vercel's AI SDK"))).split()
    assert set(packages) == set(json.loads((LISTS / "package.json").read_text())["dependencies"])
