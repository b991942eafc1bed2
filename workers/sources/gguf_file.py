"""One GGUF file opened for reading: typed metadata and de-quantised tensors. The only importer of `gguf`.

Knows the container, not what the keys mean; the architecture and the tokenizer modules ask it by key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workers.errors import SourceError

if TYPE_CHECKING:
    from workers.sources.safetensors_writer import FloatArray

_T = TypeVar("_T")


class GgufFile:
    """Metadata and tensors of one file; tensors are mapped, not read, until asked for."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise SourceError(f"{path.name} needs the package gguf: pip install 'aviary[workers]'") from error

        try:
            reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError) as error:
            raise SourceError(f"{path} is not a readable GGUF file ({error}); fetch it again") from error
        self.name = path.name
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self._fields)

    def get(self, key: str, kind: type[_T]) -> _T | None:
        """The value of `key`, None when absent. Raises `SourceError` when it is of another type."""
        if key not in self._fields:
            return None
        value: Any = self._fields[key].contents()
        if not isinstance(value, kind):
            raise SourceError(f"{self.name}: {key} is a {type(value).__name__}, expected {kind.__name__}")
        return value

    def require(self, key: str, kind: type[_T]) -> _T:
        """The value of `key`. Raises `SourceError` when it is absent or of another type."""
        value = self.get(key, kind)
        if value is None:
            raise SourceError(f"{self.name}: the key {key} is missing")
        return value

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor, outermost dimension first as in torch."""
        return {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def dequantize(self, name: str) -> FloatArray:
        """The tensor as float32. Raises `SourceError` for a quantisation that `gguf` cannot undo."""
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            array: FloatArray = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise SourceError(
                f"{self.name}: tensor {name}: {error}; choose a file with another quantisation"
            ) from error
        return array.reshape(self.shapes[name])
