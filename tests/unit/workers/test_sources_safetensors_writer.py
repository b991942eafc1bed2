"""The streaming writer against the library's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from workers.sources.safetensors_writer import num_bytes_float32, write_float32

ARRAYS = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.norm": np.array([1.5, -2.25, 1e-30], dtype=np.float32),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
SHAPES: dict[str, tuple[int, ...]] = {name: array.shape for name, array in ARRAYS.items()}


def test_the_library_reads_back_every_tensor_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_float32(path, SHAPES, ARRAYS.__getitem__)
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == set(ARRAYS)
        assert file.metadata() == {"format": "pt"}
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    sizes: list[int] = []

    def load(_name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        sizes.append(path.stat().st_size)
        return np.zeros((64, 1024), dtype=np.float32)

    write_float32(path, dict.fromkeys("abcd", (64, 1024)), load)
    assert sizes[-1] - sizes[0] >= 2 * 64 * 1024 * 4


def test_a_tensor_of_another_shape_than_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.norm has shape \(3,\), announced as \(4,\)"):
        write_float32(tmp_path / "model.safetensors", {"a.norm": (4,)}, ARRAYS.__getitem__)


def test_the_size_counts_four_bytes_per_number() -> None:
    assert num_bytes_float32({"a": (3, 4), "b": (5,)}) == 68
