"""Reading small GGUF files made here: what maps is exact, what is not understood is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGUFWriter

from workers.errors import SourceError
from workers.sources.gguf_file import GgufFile
from workers.sources.gguf_llama import LlamaLayout
from workers.sources.gguf_tokenizer import build_backend, read_special_token_ids

Array = npt.NDArray[np.float32]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 16, 4, 2, 4, 12
BYTE_TOKENS = ["Ġ", "1", "2", "3", "a", "b", "ab", "12"]
TOKENS = ["<|start|>", "<|end|>", "<think>", *BYTE_TOKENS, "Ġab"]
TOKEN_TYPES = [3, 3, 4, *(1 for _ in BYTE_TOKENS), 1]
Write = Callable[[GGUFWriter], None]


def nothing(_writer: GGUFWriter) -> None:
    pass


def tensors() -> dict[str, Array]:
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_gate.weight": (32, HIDDEN),
        "blk.0.ffn_up.weight": (32, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, 32),
    }
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def open_gguf(tmp_path: Path) -> Callable[..., GgufFile]:
    def write(more: Write = nothing, *, arrays: dict[str, Array] | None = None, pre: str = "smollm") -> GgufFile:
        path = tmp_path / "tiny.gguf"
        writer = GGUFWriter(path, "llama")
        _write_metadata(writer, pre)
        more(writer)
        for name, array in (tensors() if arrays is None else arrays).items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return GgufFile(path)

    return write


def _write_metadata(writer: GGUFWriter, pre: str) -> None:
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(32)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TOKEN_TYPES)
    writer.add_token_merges(["a b", "1 2", "Ġ ab"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


OpenGguf = Callable[..., GgufFile]


def test_the_configuration_is_read_with_its_defaults(open_gguf: OpenGguf) -> None:
    config = LlamaLayout(open_gguf()).config()
    assert config["head_dim"] == HEAD_DIM
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == VOCAB


def test_an_output_tensor_of_its_own_unties_the_embeddings(open_gguf: OpenGguf) -> None:
    output = np.ones((VOCAB, HIDDEN), dtype=np.float32)
    layout = LlamaLayout(open_gguf(arrays={**tensors(), "output.weight": output}))
    assert layout.config()["tie_word_embeddings"] is False
    np.testing.assert_array_equal(layout.load("lm_head.weight"), output)


@pytest.mark.parametrize(("part", "num_heads"), [("q", HEADS), ("k", KV_HEADS)])
def test_query_and_key_rows_go_back_to_hugging_faces_order(open_gguf: OpenGguf, part: str, num_heads: int) -> None:
    """llama.cpp's converter interleaves the two halves of each head; this must be its exact inverse."""
    original = tensors()[f"blk.0.attn_{part}.weight"]
    halves = original.reshape(num_heads, 2, HEAD_DIM // 2, HIDDEN)
    interleaved = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(original.shape)
    layout = LlamaLayout(open_gguf(arrays={**tensors(), f"blk.0.attn_{part}.weight": interleaved}))
    np.testing.assert_array_equal(layout.load(f"model.layers.0.self_attn.{part}_proj.weight"), original)


def test_half_precision_tensors_become_the_same_numbers_in_float32(open_gguf: OpenGguf) -> None:
    half = tensors()["blk.0.ffn_up.weight"].astype(np.float16)
    layout = LlamaLayout(open_gguf(arrays={**tensors(), "blk.0.ffn_up.weight": half}))
    loaded = layout.load("model.layers.0.mlp.up_proj.weight")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, half.astype(np.float32))


def test_a_rope_scaling_is_refused_by_name(open_gguf: OpenGguf) -> None:
    file = open_gguf(lambda writer: writer.add_rope_scaling_factor(4.0))
    with pytest.raises(SourceError, match=r"sets llama\.rope\.scaling\.factor, which the conversion does not"):
        LlamaLayout(file)


def test_a_partial_rotation_is_refused(open_gguf: OpenGguf) -> None:
    file = open_gguf(lambda writer: writer.add_rope_dimension_count(2))
    with pytest.raises(SourceError, match=r"llama\.rope\.dimension_count differs from the head size 4"):
        LlamaLayout(file).config()


def test_a_tensor_that_is_not_understood_is_refused(open_gguf: OpenGguf) -> None:
    arrays = {**tensors(), "blk.0.attn_q.bias": np.zeros(HIDDEN, dtype=np.float32)}
    with pytest.raises(SourceError, match=r"does not understand: blk\.0\.attn_q\.bias \(1 in all\)"):
        LlamaLayout(open_gguf(arrays=arrays))


def test_a_missing_tensor_is_named(open_gguf: OpenGguf) -> None:
    arrays = tensors()
    del arrays["blk.0.ffn_up.weight"]
    with pytest.raises(SourceError, match=r"tiny\.gguf lacks the tensor blk\.0\.ffn_up\.weight"):
        LlamaLayout(open_gguf(arrays=arrays))


def test_a_missing_key_and_one_of_another_type_are_named(open_gguf: OpenGguf) -> None:
    file = open_gguf()
    with pytest.raises(SourceError, match=r"tiny\.gguf: the key llama\.nothing is missing"):
        file.require("llama.nothing", int)
    with pytest.raises(SourceError, match=r"tiny\.gguf: llama\.block_count is a int, expected str"):
        file.require("llama.block_count", str)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"not a model" * 100)
    with pytest.raises(SourceError, match=r"no\.gguf is not a readable GGUF file"):
        GgufFile(path)


def encode(file: GgufFile, text: str) -> list[str]:
    tokens: list[str] = build_backend(file, TOKENS, read_special_token_ids(file)).encode(text).tokens
    return tokens


def test_smollms_rule_cuts_digits_off_one_by_one(open_gguf: OpenGguf) -> None:
    assert encode(open_gguf(), "ab 12") == ["ab", "Ġ", "1", "2"]


def test_gpt2s_rule_keeps_digits_together(open_gguf: OpenGguf) -> None:
    assert encode(open_gguf(pre="gpt-2"), "ab 12") == ["ab", "Ġ", "12"]


def test_control_and_user_defined_tokens_stay_whole(open_gguf: OpenGguf) -> None:
    assert encode(open_gguf(), "ab<|end|><think> ab") == ["ab", "<|end|>", "<think>", "Ġab"]


def test_a_file_that_wants_a_first_token_gets_it(open_gguf: OpenGguf) -> None:
    file = open_gguf(lambda writer: writer.add_add_bos_token(True))
    assert encode(file, "ab") == ["<|start|>", "ab"]


def test_special_ids_fall_back_and_the_end_of_a_turn_stops_too(open_gguf: OpenGguf) -> None:
    ids = read_special_token_ids(open_gguf())
    assert (ids.bos, ids.pad, ids.unknown, ids.stops) == (0, 1, None, 1)
    assert read_special_token_ids(open_gguf(lambda writer: writer.add_eot_token_id(2))).stops == [1, 2]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda writer: writer.add_tokenizer_pre("tekken"), "split rule 'tekken' is not supported, only gpt-2, smollm"),
        (lambda writer: writer.add_tokenizer_model("llama"), "tokenizer model 'llama' is not supported, only 'gpt2'"),
        (lambda writer: writer.add_add_eos_token(True), "add_eos_token is not supported"),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt_are_refused_by_name(open_gguf: OpenGguf, write: Write, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        encode(open_gguf(write), "ab")
