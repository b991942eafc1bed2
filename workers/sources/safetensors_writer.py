"""Writes a safetensors file one tensor at a time, so a model of any size is converted in the memory of its largest one.

The library's own writer wants all tensors at once. The format: 8 bytes length of the header, the header (JSON: name →
dtype, shape, byte range), then the data without gaps. Knows nothing of models; the GGUF conversion calls it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
_ITEM_BYTES = 4
_ALIGNMENT = 8


def num_bytes_float32(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of data of these tensors as float32."""
    return sum(math.prod(shape) for shape in shapes.values()) * _ITEM_BYTES


def write_float32(path: Path, shapes: Mapping[str, tuple[int, ...]], load: Callable[[str], FloatArray]) -> None:
    """Write the named tensors in order; `load` is called once for each and must return its shape."""
    header = _header(shapes)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name, shape in shapes.items():
            array = load(name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, announced as {shape}")
            np.ascontiguousarray(array, dtype="<f4").tofile(file)


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * _ITEM_BYTES
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % _ALIGNMENT)
