"""What holds for all tests: each is marked by the folder it lives in (unit, integration, e2e, chaos, gpu), and
generated examples are the same on every run, however slow the machine. And the two models that several folders share:
a tiny random one, made on the spot, and the real small one of the zoo. Heavy imports stay inside the fixtures.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from model_registry.loader import ZOO, load_entry
from tests.support.faults import LINES, NoteFault, line_about

settings.register_profile("test", derandomize=True, deadline=None, max_examples=40)
settings.register_profile("fuzz", derandomize=False, deadline=None, max_examples=2000)
settings.load_profile("test")  # --hypothesis-profile=fuzz chooses the other one

TESTS = Path(__file__).parent
KINDS = ("unit", "integration", "e2e", "chaos", "gpu")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "where there is a will there is a way, is there not",
    "every worker waits for a prompt and every prompt waits for a worker",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Their ids are 0, 1 and 2; the last one ends a generation."""
VOCAB_SIZE = 320
FIRST_FETCH_TIMEOUT_S = 600


def pytest_collection_finish() -> None:
    """What collecting has made stays to the end: the collector of garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=2, help="how often each fault of tests/chaos is injected")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How often a fault is injected: a few times in `make test`, many times in `make chaos`."""
    num_rounds: int = request.config.getoption("rounds")
    return num_rounds


@pytest.fixture
def note(request: pytest.FixtureRequest) -> NoteFault:
    """Whatever is noted stands in the run's summary."""
    lines = request.config.stash.setdefault(LINES, [])

    def note(fault: str, num_survived: int, num_injected: int, ends: Mapping[str, int]) -> None:
        lines.append(line_about(fault, num_survived, num_injected, ends))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(LINES, []):
        terminalreporter.section("faults under load")
        for line in lines:
            terminalreporter.line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if kind not in KINDS:
            raise pytest.UsageError(f"{item.path} lies in none of the folders {', '.join(KINDS)} of {TESTS}")
        item.add_marker(kind)
        # Whichever test asks for the real model first may have to download its 98 MB.
        if "smollm2" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(FIRST_FETCH_TIMEOUT_S))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with random weights, always the same ones, as a Hugging Face folder.

    Weights are spread wider than a real initialisation, so that the likeliest token is rarely close to the next.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    _save_tiny_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    return folder


def _save_tiny_tokenizer(folder: Path) -> None:
    """Byte-level BPE, so that any text can be encoded, with some merges learned from three sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    if len(tokenizer) != VOCAB_SIZE:
        raise AssertionError(f"the corpus gives {len(tokenizer)} tokens, the model has {VOCAB_SIZE}")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as its registry file says: fetched and converted once per machine."""
    from workers.sources import default_cache_dir, fetch_model

    entry = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml")
    return fetch_model(entry.model, default_cache_dir(), lambda _line: None)
