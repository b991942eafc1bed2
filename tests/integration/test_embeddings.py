"""/v1/embeddings against the openai client, and every initializer's vectors against Transformers' own hidden states."""

from __future__ import annotations

import base64
import math
import shutil
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    OPTConfig,
    OPTForCausalLM,
)

from model_registry.contract import (
    NOTHING,
    Embed,
    GenerationRequest,
    SamplingParams,
    SequenceOutput,
    TextPrompt,
    TextSegment,
)
from model_registry.loader import ZOO, load_entry
from model_registry.schema import RegistryEntry
from tests.support import tiny_bert
from tests.support.gguf_writing import write_gguf
from tests.support.live_gateway import LiveGateway
from tests.support.live_system import System, run_system
from tests.support.scripted_pool import MODEL as SCRIPTED
from tests.support.scripted_pool import ScriptedWorker
from tests.support.tiny_bert import write_tiny_bert
from workers.engine.embeddings import Passage
from workers.engine.engine import Engine
from workers.errors import LoadError, UnsupportedModelError
from workers.initializers import build_engine, initializer_for
from workers.initializers.base import LoadedModel
from workers.initializers.encoder import only_embeds
from workers.runners import llama_embedding
from workers.runners.embedding import DecoderEmbedder, EncoderEmbedder
from workers.runners.pooling import Pooling, VectorShape
from workers.sources import default_cache_dir
from workers.sources.gguf_source import fetch_gguf_file

MODEL = "tests/model"
TEXTS = ["the quick brown fox", "every worker waits", "a", "Grüße! 🙂 " * 12, "there is a way <|im_end|>"]
TOLERANCE = 1e-4

Vectors = np.ndarray[Any, np.dtype[np.float64]]


def entry_of(folder: Path | None, embedding: dict[str, Any], **initializer: Any) -> RegistryEntry:
    return RegistryEntry.model_validate(
        {
            "deployment_config": {"max_ongoing_requests": 8},
            "model_config": {
                "model_id": MODEL,
                "initialization": {
                    "hf_model_id": None if folder is None else str(folder),
                    "initializer": initializer,
                },
                "generation": {"kv_cache_tokens": 1024, "max_model_len": 256, "max_batch_tokens": 64},
                "embedding": embedding,
            },
            "scaling_config": {"num_gpus_per_worker": 0},
        }
    )


# The face


@pytest.fixture(scope="module")
def echo() -> Iterator[System]:
    yield from run_system(entry_of(None, {"dimensions": True}, type="Echo"))


@pytest.fixture
def client(echo: System) -> Iterator[openai.OpenAI]:
    with echo.client as client:
        yield client


def counts_of(text: str) -> list[float]:
    """The vector that Echo makes of a text: how often it has each byte, and its end."""
    counts = [float(text.encode().count(byte)) for byte in range(256)] + [1.0, 0.0]
    return [count / math.hypot(*counts) for count in counts]


def test_the_openai_client_gets_vectors_in_the_order_of_its_inputs(client: openai.OpenAI) -> None:
    texts = [f"{number}" * number for number in range(1, 30)]
    reply = client.embeddings.create(model=MODEL, input=texts)
    assert [one.index for one in reply.data] == list(range(29))
    for text, one in zip(texts, reply.data, strict=True):
        assert one.embedding == pytest.approx(counts_of(text), abs=1e-6)
    num_tokens = sum(len(text) + 1 for text in texts)
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (num_tokens, num_tokens)
    assert (reply.model, reply.object) == (MODEL, "list")


def test_numbers_and_bytes_say_the_same(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model=MODEL, input="hello", encoding_format="float").data[0].embedding
    data: Any = client.embeddings.create(model=MODEL, input="hello", encoding_format="base64").data[0].embedding
    raw = base64.b64decode(data) if isinstance(data, str) else struct.pack(f"<{len(data)}f", *data)
    assert struct.unpack("<258f", raw) == tuple(numbers)


def test_the_bytes_are_float32_little_endian(echo: System) -> None:
    fields = {"model": MODEL, "input": "a", "encoding_format": "base64"}
    reply = httpx.post(f"{echo.gateway.url}/v1/embeddings", json=fields).json()
    raw = base64.b64decode(reply["data"][0]["embedding"])
    assert list(struct.unpack("<258f", raw)) == pytest.approx(counts_of("a"), abs=1e-6)


def test_token_ids_are_taken_one_prompt_or_several(client: openai.OpenAI) -> None:
    text = client.embeddings.create(model=MODEL, input=["hi", "yo"]).data
    assert client.embeddings.create(model=MODEL, input=list(b"hi")).data[0].embedding == text[0].embedding
    several = client.embeddings.create(model=MODEL, input=[list(b"hi"), list(b"yo")]).data
    assert [one.embedding for one in several] == [one.embedding for one in text]


def test_fewer_dimensions_are_the_first_ones_at_length_one(client: openai.OpenAI) -> None:
    whole = client.embeddings.create(model=MODEL, input="abc").data[0].embedding
    cut = client.embeddings.create(model=MODEL, input="abc", dimensions=98).data[0].embedding
    assert len(cut) == 98
    assert math.hypot(*cut) == pytest.approx(1)
    assert cut == pytest.approx([number / math.hypot(*whole[:98]) for number in whole[:98]])


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "no/such"}, 404, "model_not_found", None),
        ({"input": "x" * 300}, 400, "context_length_exceeded", "input"),
        ({"input": ["a", "x" * 300]}, 400, "context_length_exceeded", "input"),
        ({"input": [400]}, 400, "invalid_value", "input"),
        ({"input": ""}, 400, "empty_string", "input"),
        ({"dimensions": 1000}, 400, "invalid_value", "dimensions"),
        ({"input": ["a"] * 200}, 400, "array_above_max_length", "input"),
    ],
)
def test_errors_are_those_of_all_endpoints(
    client: openai.OpenAI, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**{"model": MODEL, "input": "a", **fields})
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)


def test_requests_for_embeddings_are_counted_under_their_endpoint(echo: System, client: openai.OpenAI) -> None:
    client.embeddings.create(model=MODEL, input="hello")
    metrics = httpx.get(f"{echo.gateway.url}/metrics").text
    assert 'aviary_requests_total{endpoint="/v1/embeddings",finish_reason="none",model="tests/model"' in metrics
    assert 'aviary_prompt_tokens_total{model="tests/model"}' in metrics
    assert 'aviary_generation_tokens_total{model="tests/model"}' not in metrics


def test_a_client_that_leaves_takes_all_its_inputs_along() -> None:
    worker = ScriptedWorker()
    with LiveGateway({"a": worker}) as gateway:
        fields = {"model": SCRIPTED, "input": ["a", "b", "c"]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/v1/embeddings", json=fields, timeout=0.3)
        deadline = time.monotonic() + 2
        while len(worker.aborted) < 3:
            assert time.monotonic() < deadline, "the inputs were not aborted in time"
            time.sleep(0.005)
    assert set(worker.aborted) == {request.request_id for request in worker.requests}


# The vectors


def pooled(hidden: torch.Tensor, pooling: str) -> torch.Tensor:
    return {"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}[pooling]


def reference(folder: Path, texts: Sequence[str], pooling: str, *, normalize: bool = True) -> Vectors:
    """Every text by itself, through the model's own attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            states = model.model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state
            vector = pooled(states[0], pooling)
            vectors.append((vector / vector.norm() if normalize else vector).double().numpy())
    return np.stack(vectors)


def loaded_of(entry: RegistryEntry) -> LoadedModel:
    return initializer_for(entry).load(entry, lambda _line: None)


def engine_of(entry: RegistryEntry) -> Engine:
    return build_engine(entry, loaded_of(entry))


def embedded(engine: Engine, texts: Sequence[str]) -> Vectors:
    """All at once, beside a generation."""
    running = TextPrompt((TextSegment("the quick", trusted=True),))
    sampling = SamplingParams(max_tokens=8, temperature=0)
    engine.submit(engine.prepare(GenerationRequest(request_id="running", prompt=running, sampling=sampling)))
    return vectors_of(engine, texts)


def vectors_of(engine: Engine, texts: Sequence[str]) -> Vectors:
    task = Embed()
    for number, text in enumerate(texts):
        prompt = TextPrompt((TextSegment(text, trusted=False),), has_closing=True)
        request = GenerationRequest(request_id=str(number), prompt=prompt, sampling=NOTHING, task=task)
        engine.submit_embedding(engine.prepare_embedding(request, task))
    ended: dict[str, SequenceOutput] = {}
    while engine.has_work:
        ended |= {output.request_id: output for output in engine.step() if output.is_final}
    assert all(output.fault is None for output in ended.values())
    return np.stack([np.frombuffer(ended[str(number)].embedding, dtype="<f4") for number in range(len(texts))])


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(tiny_llama, copy)
    write_gguf(copy, copy / "tiny.gguf", eos_token_id=2)
    return copy


INITIALIZERS: dict[str, dict[str, Any]] = {
    "SingleDevice": {"type": "SingleDevice", "dtype": "float32"},
    "compiled": {"type": "SingleDevice", "dtype": "float32", "torch_compile": {"backend": "eager", "mode": None}},
    "DeviceMap": {"type": "DeviceMap", "dtype": "float32", "device_map": "cpu"},
    # Left to itself llama.cpp keeps keys and values in half precision, and computes its attention in it.
    "LlamaCpp": {
        "type": "LlamaCpp",
        "model_filename": "tiny.gguf",
        "model_init_kwargs": {"type_k": "f32", "type_v": "f32", "flash_attn": False},
    },
}


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_vectors_are_the_models_own_hidden_states_pooled(folder: Path, name: str, pooling: str) -> None:
    engine = engine_of(entry_of(folder, {"pooling": pooling}, **INITIALIZERS[name]))
    assert embedded(engine, TEXTS) == pytest.approx(reference(folder, TEXTS, pooling), abs=TOLERANCE)


def test_weights_on_disk_make_the_same_vectors(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_CACHE_DIR", str(tmp_path))
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.1": "disk", "model.norm": "disk"}
    engine = engine_of(entry_of(folder, {}, type="DeviceMap", dtype="float32", device_map=places))
    assert embedded(engine, TEXTS) == pytest.approx(reference(folder, TEXTS, "last"), abs=TOLERANCE)


def test_a_decoder_needs_no_section_and_pools_its_last_token(folder: Path) -> None:
    engine = engine_of(entry_of(folder, {}, **INITIALIZERS["SingleDevice"]))
    assert embedded(engine, TEXTS) == pytest.approx(reference(folder, TEXTS, "last"), abs=TOLERANCE)


def test_vectors_keep_their_length_where_the_registry_says_so(folder: Path) -> None:
    engine = engine_of(entry_of(folder, {"normalize": False}, **INITIALIZERS["SingleDevice"]))
    expected = reference(folder, TEXTS, "last", normalize=False)
    assert embedded(engine, TEXTS) == pytest.approx(expected, rel=TOLERANCE, abs=10 * TOLERANCE)


def test_a_real_model_gives_its_own_vectors_too(smollm2: Path) -> None:
    engine = engine_of(entry_of(smollm2, {"pooling": "mean"}, **INITIALIZERS["SingleDevice"]))
    assert embedded(engine, TEXTS) == pytest.approx(reference(smollm2, TEXTS, "mean"), abs=TOLERANCE)


def test_llama_cpp_gives_a_real_models_vectors_too(smollm2: Path) -> None:
    """Transformers runs the weights of the very same file."""
    zoo = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct-GGUF.yaml")
    file = fetch_gguf_file(zoo.model, default_cache_dir(), lambda _line: None)
    parameters = {"n_threads": 1, "n_threads_batch": 1}
    settings = {"type": "LlamaCpp", "model_filename": file.name, "model_init_kwargs": parameters}
    for pooling in ("last", "mean"):
        vectors = embedded(engine_of(entry_of(file.parent, {"pooling": pooling}, **settings)), TEXTS)
        cosines = (vectors * reference(smollm2, TEXTS, pooling)).sum(1)
        assert cosines.min() > 0.99


def test_llama_cpps_context_grows_with_what_comes_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_embedding, "MIN_CELLS", 4)
    engine = engine_of(entry_of(folder, {}, **INITIALIZERS["LlamaCpp"]))
    expected = reference(folder, TEXTS, "last")
    for number in (2, 0, 3, 1):
        assert embedded(engine, [TEXTS[number]])[0] == pytest.approx(expected[number], abs=TOLERANCE)


# Models that only embed


WORDS = ["the quick fox", "working", "a fox works the fox works the fox", "z"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


ENCODERS: dict[str, dict[str, Any]] = {
    "SingleDevice": {"type": "SingleDevice", "dtype": "float32"},
    "DeviceMap": {"type": "DeviceMap", "dtype": "float32", "device_map": "cpu"},
    "LlamaCpp": {"type": "LlamaCpp", "model_filename": tiny_bert.FILE, "model_init_kwargs": {"flash_attn": False}},
}


def encoder_reference(folder: Path, pooling: str) -> Vectors:
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in WORDS]
    vectors = [pooled(hidden, pooling) for hidden in states]
    return np.stack([(vector / vector.norm()).double().numpy() for vector in vectors])


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pooling", [None, "cls"])
def test_an_encoder_makes_its_own_vectors(bert: Path, name: str, pooling: str | None) -> None:
    embedding = {"pooling": pooling} if pooling else {}
    for system in run_system(entry_of(bert, embedding, **ENCODERS[name])):
        with system.client as client:
            reply = client.embeddings.create(model=MODEL, input=WORDS)
    vectors = np.array([one.embedding for one in reply.data])
    tolerance = 1e-3 if name == "LlamaCpp" else TOLERANCE  # its GELU is a table in half precision
    assert vectors == pytest.approx(encoder_reference(bert, pooling or "mean"), abs=tolerance)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert reply.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in WORDS)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_refuses_to_generate_and_inputs_that_are_too_long(bert: Path, name: str) -> None:
    for system in run_system(entry_of(bert, {}, **ENCODERS[name])):
        with system.client as client:
            with pytest.raises(openai.BadRequestError, match="cannot generate") as generation:
                client.completions.create(model=MODEL, prompt="the fox")
            with pytest.raises(openai.BadRequestError, match="maximum context length is 64") as too_long:
                client.embeddings.create(model=MODEL, input="fox " * 80)
            assert client.embeddings.create(model=MODEL, input="fox " * 62).usage.prompt_tokens == 64
        assert generation.value.param == "model"
        assert too_long.value.param == "input"


def test_a_model_that_says_how_it_is_pooled_is_pooled_so(bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "model"))
    tiny_bert.declare_pooling(copy, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    engine = engine_of(entry_of(copy, {}, **ENCODERS["SingleDevice"]))
    assert vectors_of(engine, WORDS) == pytest.approx(encoder_reference(copy, "cls"), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("model_type", "config", "is_so"),
    [
        ("bert", {"architectures": ["BertModel"]}, True),
        ("roberta", {"architectures": ["RobertaForMaskedLM"]}, True),
        ("mistral", {"architectures": ["MistralModel"]}, True),
        ("funnel", {"architectures": ["FunnelBaseModel"]}, True),
        ("bert-generation", {"architectures": ["BertGenerationEncoder"]}, True),
        ("llama", {"architectures": ["LlamaForCausalLM"]}, False),
        ("gpt2", {"architectures": ["GPT2LMHeadModel"]}, False),
        ("openai-gpt", {"architectures": ["OpenAIGPTDoubleHeadsModel"]}, False),
        ("xlm", {"architectures": ["XLMWithLMHeadModel"]}, False),
        ("bert", {"architectures": ["BertForSequenceClassification"]}, False),
        ("llama4", {"architectures": ["Llama4ForConditionalGeneration"]}, False),
        ("t5", {"architectures": ["T5EncoderModel"], "is_encoder_decoder": True}, False),
        ("bert", {"architectures": None}, False),
        ("bert", {"architectures": ["NewModel"], "auto_map": {"AutoModel": "modeling.NewModel"}}, True),
        ("bert", {"architectures": ["NewForMaskedLM"], "auto_map": {"AutoModelForMaskedLM": "x.NewForMaskedLM"}}, True),
        ("bert", {"architectures": ["GLMModel"], "auto_map": {"AutoModelForCausalLM": "x.GLMForCausalLM"}}, False),
        (
            "bert",
            {"architectures": ["Own"], "auto_map": {"AutoModel": "x.Own", "AutoModelForCausalLM": "x.Own"}},
            False,
        ),
    ],
)
def test_a_model_without_a_head_is_known_by_its_config(model_type: str, config: dict[str, Any], is_so: bool) -> None:
    assert only_embeds(AutoConfig.for_model(model_type, **config)) == is_so


def test_a_model_that_embeds_no_text_is_refused(bert: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bert, tmp_path / "model"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": 40}, vision_config=sizes | {"image_size": 4, "patch_size": 2}
    )
    CLIPModel(config).save_pretrained(copy)
    with pytest.raises(LoadError, match="CLIPModel makes no embeddings of text"):
        engine_of(entry_of(copy, {}, **ENCODERS["SingleDevice"]))


def test_an_encoder_pads_no_text_to_twice_its_length_and_counts_what_it_computes(bert: Path) -> None:
    model: Any = AutoModel.from_pretrained(bert, dtype=torch.float32, add_pooling_layer=False).eval()
    embedder = EncoderEmbedder(model, VectorShape(Pooling.MEAN, normalizes=False, can_be_cut=False))
    lengths = [60, 2, 33, 2, 1, 7, 3, 31, *[2] * 40]
    passages = [Passage(tuple(range(5, 5 + length % 40)) + (4,) * (length - length % 40), 32) for length in lengths]
    alone = [embedder.embed([passage]) for passage in passages]
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _model, _args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    together = embedder.embed(passages)
    num_computed = sum(rows * columns for rows, columns in shapes)
    assert num_computed == embedder.num_computed(lengths) < 2 * sum(lengths)
    for vector, (expected,) in zip(together, alone, strict=True):
        assert np.frombuffer(vector, "<f4") == pytest.approx(np.frombuffer(expected, "<f4"), abs=TOLERANCE)


def write_tiny_opt(tiny_llama: Path, folder: Path) -> Path:
    """A decoder whose hidden states come out narrower than they are inside."""
    copy = Path(shutil.copytree(tiny_llama, folder))
    vocab_size = AutoConfig.from_pretrained(tiny_llama).vocab_size
    config = OPTConfig(
        vocab_size=vocab_size, hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256, do_layer_norm_before=False,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(copy)
    return copy


def test_a_vector_is_as_large_as_what_comes_out(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_tiny_opt(tiny_llama, tmp_path / "opt")
    loaded = loaded_of(entry_of(folder, {}, **INITIALIZERS["SingleDevice"]))
    assert loaded.embedder is not None
    assert loaded.embedder.num_dimensions == 16
    assert len(loaded.embedder.embed([Passage((3, 4), 16)])[0]) == 4 * 16


def test_a_model_whose_first_embedding_fails_generates_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(DecoderEmbedder, "_states", fail)
    loaded = loaded_of(entry_of(folder, {}, **INITIALIZERS["SingleDevice"]))
    assert loaded.embedder is None
    assert "makes no embeddings: the first failed (TypeError: unexpected keyword argument)" in loaded.note


def test_compiling_an_encoder_is_refused_by_name(bert: Path) -> None:
    entry = entry_of(bert, {}, **ENCODERS["SingleDevice"], torch_compile={"backend": "eager"})
    with pytest.raises(UnsupportedModelError, match=r"initializer\.torch_compile"):
        engine_of(entry)
