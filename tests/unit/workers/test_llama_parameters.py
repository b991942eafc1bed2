"""`model_init_kwargs`: every key goes to one place of llama.cpp's structs, or is refused in one line that names it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from workers.errors import LoadError
from workers.initializers.llama_parameters import HONOURED, REFUSED, LlamaParameters, parse_parameters

KEY = "model_config.initialization.initializer.model_init_kwargs"

EXAMPLES: dict[str, Any] = {
    "n_gpu_layers": -1,
    "split_mode": "row",
    "main_gpu": 1,
    "tensor_split": [0.5, 0.5],
    "use_mmap": False,
    "use_mlock": True,
    "numa": "isolate",
    "verbose": True,
    "n_ctx": 2048,
    "n_batch": 512,
    "n_ubatch": 128,
    "n_threads": 3,
    "n_threads_batch": 4,
    "flash_attn": True,
    "type_k": "q8_0",
    "type_v": 1,
    "offload_kqv": False,
    "op_offload": False,
    "no_perf": True,
    "rope_scaling_type": "yarn",
    "rope_freq_base": 10000,
    "rope_freq_scale": 0.5,
    "yarn_ext_factor": 1.0,
    "yarn_attn_factor": 1.0,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_orig_ctx": 4096,
}


def test_there_is_an_example_of_every_key() -> None:
    assert EXAMPLES.keys() == HONOURED.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_key_changes_something(name: str) -> None:
    assert parse_parameters({name: EXAMPLES[name]}) != LlamaParameters()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_key_is_named_with_what_to_do(name: str) -> None:
    with pytest.raises(LoadError, match=rf"^{re.escape(KEY)}\.{name} is not executed; .{{10}}"):
        parse_parameters({name: None})


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        LoadError, match=rf"^{re.escape(KEY)}\.n_contxt is unknown; known are flash_attn, main_gpu, n_batch"
    ):
        parse_parameters({"n_ctx": 5, "n_contxt": 5})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_ctx", "many", "'many', expected a whole number"),
        ("n_ctx", True, "True, expected a whole number"),
        ("n_ctx", 0, "0, expected a whole number above 0"),
        ("n_gpu_layers", 1.5, "1.5, expected a whole number"),
        ("use_mmap", 1, "1, expected true or false"),
        ("rope_freq_base", True, "True, expected a number"),
        ("type_k", "q9", "'q9', expected one of f32, f16"),
        ("type_k", 999, "999, expected one of f32, f16"),
        ("type_k", [], "[], expected one of f32, f16"),
        ("flash_attn", 1, "1, expected one of auto, false, true"),
        ("tensor_split", [], "[], expected a list of numbers"),
        ("tensor_split", ["a"], "['a'], expected a number"),
    ],
)
def test_a_value_of_another_kind_is_shown_with_what_is_expected(name: str, value: object, expected: str) -> None:
    with pytest.raises(LoadError) as refused:
        parse_parameters({name: value})
    assert str(refused.value).startswith(f"{KEY}.{name} is {expected}")


def test_the_positions_mean_something_else_only_where_a_key_says_so() -> None:
    assert not parse_parameters({"n_ctx": 5}).changes_rope
    assert parse_parameters({"rope_freq_scale": 0.5}).changes_rope


def test_without_the_library_the_error_names_the_extra() -> None:
    """In a process of its own, where the library is as good as not installed."""
    program = "import sys; sys.modules['llama_cpp'] = None; import workers.runners.llama_library"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'aviary[llama]'" in done.stderr.splitlines()[-1]
    assert "UnsupportedModelError" in done.stderr.splitlines()[-1]
