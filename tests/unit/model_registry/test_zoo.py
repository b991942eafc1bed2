"""The files that ship with Aviary: each loads, says what it runs on, and writes prompts as its model was trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aviary.settings import DeploySettings
from gateway.prompts import render_chat
from model_registry.contract import ChatMessage, TextPrompt
from model_registry.loader import ZOO, load_entry, load_registry
from model_registry.schema import DeepSpeed, DeviceMap, LlamaCpp, SingleDevice
from model_registry.support import unsupported_keys

FILES = sorted(ZOO.glob("*.yaml"))
NOT_RUN_YET = {
    "amazon/LightGPT",
    "eachadea/ggml-vicuna-13b-1.1",
    "mosaicml/mpt-7b-storywriter",
    "tiiuae/falcon-7b",
}
"""Of the original zoo: their attention, or the format of their file, is beyond the engine. Their headers say so."""
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nhi\n\n### Response:\n"
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_loads_and_opens_with_what_it_runs_on_or_shows(file: Path) -> None:
    entry = load_entry(file)
    assert entry.model.model_description or entry.model_id.startswith("mosaicml/mpt-7b-")
    header = re.match(r"(#.*\n)+", file.read_text(encoding="utf-8"))
    assert header is not None
    assert re.search(r"\b(Runs on|Shows)\b", header[0]), header[0]


def test_the_whole_folder_loads_with_the_original_zoo_in_it() -> None:
    registry = load_registry(ZOO)
    disabled = {entry.model_id for entry in registry.disabled.values()}
    assert disabled == NOT_RUN_YET
    assert {
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "aviary/echo",
        "databricks/dolly-v2-12b",
        "h2oai/h2ogpt-oasst1-512-12b",
        "mosaicml/mpt-7b-chat",
        "mosaicml/mpt-7b-instruct",
        "stabilityai/stablelm-tuned-alpha-7b",
    } <= registry.entries.keys()


def test_of_all_of_them_only_the_small_model_is_served_unasked() -> None:
    settings = DeploySettings(models=None, registry=None)
    chosen = settings.select(settings.read_registry())
    assert [entry.model_id for entry in chosen] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


@pytest.mark.parametrize("initializer", [SingleDevice, DeviceMap, DeepSpeed, LlamaCpp])
def test_every_initializer_has_a_model_to_show_it(initializer: type) -> None:
    entries = load_registry(ZOO).entries.values()
    assert any(isinstance(entry.model.initialization.initializer, initializer) for entry in entries)


def test_gemma_is_named_with_its_terms_and_comes_in_four_parts_in_their_order() -> None:
    file = ZOO / "hugginllam--gemma-3-270m-Q4_K_M-GGUF.yaml"
    initialization = load_entry(file).model.initialization
    package, initializer = initialization.python_package, initialization.initializer
    assert package is not None
    assert isinstance(initializer, LlamaCpp)
    assert initializer.model_filename == package.file
    for number, piece in enumerate(package.pieces, start=1):
        assert piece.distribution.endswith(f"-part{number}")
        assert piece.file.startswith(f"{piece.distribution.replace('-', '_')}/")
        assert piece.file.endswith(f"{package.file}.part{number - 1:02}")
    assert len(package.pieces) == 4
    assert "Gemma Terms of Use" in file.read_text(encoding="utf-8")


def test_models_for_one_gpu_ask_for_nothing_that_is_not_executed() -> None:
    for entry in load_registry(ZOO).entries.values():
        is_plain = isinstance(entry.model.initialization.initializer, SingleDevice)
        if is_plain and not entry.model_id.startswith("mosaicml/"):
            assert unsupported_keys(entry) == [], entry.model_id


def test_the_original_models_keep_their_settings_without_deepspeeds_own_kernels() -> None:
    batch_sizes = {}
    for name in ("LightGPT", "dolly-v2-12b", "h2ogpt-oasst1-512-12b", "stablelm-tuned-alpha-7b"):
        (file,) = ZOO.glob(f"*--{name}.yaml")
        entry = load_entry(file)
        initializer = entry.model.initialization.initializer
        assert isinstance(initializer, DeepSpeed)
        assert (initializer.dtype, initializer.use_kernel, initializer.max_tokens) == ("float16", False, 1536)
        assert (entry.scaling.num_workers, entry.scaling.num_gpus_per_worker) == (2, 1)
        batch_sizes[name] = entry.model.generation.max_batch_size
    assert list(batch_sizes.values()) == [18, 4, 4, 8]


@pytest.mark.parametrize(
    ("file", "prompt"),
    [
        ("amazon--LightGPT.yaml", ALPACA),
        ("databricks--dolly-v2-12b.yaml", ALPACA),
        ("h2oai--h2ogpt-oasst1-512-12b.yaml", "<human>: hi\n<bot>: "),
        (
            "stabilityai--stablelm-tuned-alpha-7b.yaml",
            "<|SYSTEM|># StableLM Tuned (Alpha version)\n"
            "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
            "- StableLM is excited to be able to help the user, but will refuse to do anything that could be "
            "considered harmful to the user.\n"
            "- StableLM is more than just an information source, StableLM is also able to write poetry, short stories, "
            "and make jokes.\n"
            "- StableLM will refuse to participate in anything that could harm a human.\n"
            "<|USER|>hi<|ASSISTANT|>",
        ),
        ("mosaicml--mpt-7b-chat.yaml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_prompts_are_written_as_the_models_were_trained(file: str, prompt: str) -> None:
    generation = load_entry(ZOO / file).model.generation
    rendered = render_chat([ChatMessage("user", "hi")], generation.prompt_format)
    assert isinstance(rendered, TextPrompt)
    assert "".join(segment.text for segment in rendered.segments) == prompt


@pytest.mark.parametrize(
    ("file", "stops"),
    [
        ("databricks--dolly-v2-12b.yaml", ["### Response:", "### End"]),
        ("h2oai--h2ogpt-oasst1-512-12b.yaml", [[29, 13961, 32056], [29, 12042, 32056], "<human>:", "<bot>:"]),
        ("stabilityai--stablelm-tuned-alpha-7b.yaml", [50278, 50279, 50277, 1, 0]),
        ("mosaicml--mpt-7b-storywriter.yaml", []),
    ],
)
def test_stopping_sequences_are_of_every_kind(file: str, stops: list[object]) -> None:
    assert load_entry(ZOO / file).model.generation.stopping_sequences == stops
