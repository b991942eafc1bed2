"""Which files of a repository or of a mirror belong to a model: one rule for every source that chooses among files.

Pickled weights are never fetched, because loading them runs code; Python files only where the registry trusts remote
code; a GGUF file only when the LlamaCpp initializer names it. Knows names, not where they come from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Final

from model_registry.schema import LlamaCpp, ModelConfig
from workers.errors import SourceError

_DATA_FILES: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_CODE_FILES: Final = ("*.py",)
_GGUF: Final = ("*.gguf",)
_GGUF_PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How llama.cpp names the parts of a split file; it opens the first and finds the others beside it."""
_MAX_PART_BYTES: Final = 255


def file_patterns(*, trust_remote_code: bool) -> tuple[str, ...]:
    """Patterns of a Transformers model's files; `*` crosses folders."""
    return (*_DATA_FILES, *(_CODE_FILES if trust_remote_code else ()))


@dataclass(frozen=True, slots=True)
class FileSelection:
    """The files of a mirror that one model needs: those that match, or exactly those that are named."""

    patterns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ModelConfig) -> FileSelection:
        initializer = model.initialization.initializer
        if isinstance(initializer, LlamaCpp):
            return cls(names=tuple(gguf_parts(initializer.model_filename)))
        kwargs = getattr(initializer, "from_pretrained_kwargs", {})
        return cls(patterns=file_patterns(trust_remote_code=bool(kwargs.get("trust_remote_code"))))

    def selects(self, name: str) -> bool:
        return name in self.names or any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def allows(self, name: str) -> bool:
        """Whether a file that the registry names by itself may be fetched: data of any kind, code only if trusted."""
        return any(fnmatchcase(name, pattern) for pattern in (*self.patterns, *_DATA_FILES, *_GGUF))


def gguf_parts(file_name: str) -> Iterator[str]:
    """The file itself, or all parts of the split file that it is a part of."""
    part = _GGUF_PART.fullmatch(file_name)
    if part is None:
        yield file_name
        return
    for number in range(1, int(part["count"]) + 1):
        yield f"{part['stem']}-{number:05d}-of-{part['count']}.gguf"


def check_names(names: Collection[str], origin: str) -> None:
    """Raises `SourceError` for the first name that cannot be a file of its own below a folder.

    Names are relative, with `/` between their parts.
    """
    known = set(names)
    for name in names:
        if _leaves_folder(name):
            raise SourceError(
                f"{origin} holds the key {name!r}, which is not a plain path below it; remove or exclude that object"
            )
        for parent in PurePosixPath(name).parents:
            if str(parent) in known:
                raise SourceError(
                    f"{origin} holds both {str(parent)!r} and {name!r}, which cannot be file and folder at once; "
                    "remove or exclude one of them"
                )


def _leaves_folder(name: str) -> bool:
    parts = name.split("/")
    is_strange = "\\" in name or any(ord(character) < ord(" ") or character == "\x7f" for character in name)
    return is_strange or any(
        part in ("", ".", "..") or len(part.encode(errors="replace")) > _MAX_PART_BYTES for part in parts
    )
