"""Loads a folder of registry files into validated entries, or says everything that is wrong with it at once.

A file may build on another by `extends`: found in its own folder first, then in the zoo that ships with Aviary.
Touches nothing but the files: no network, torch, Ray, gateway or workers. Called by the command line and by the pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from model_registry.keys import keys_of, sections_under, type_of
from model_registry.naming import REGISTRY_SUFFIXES, file_name_of, is_file_name_of, is_model_id
from model_registry.problems import Problem, RegistryError, closest, key_text, problems_of, shown
from model_registry.schema import RegistryEntry, Section
from model_registry.strict_yaml import ABSENT, KeyPath, read_yaml, value_at

__all__ = ["ZOO", "Problem", "Registry", "RegistryError", "load_entry", "load_registry"]

ZOO: Final = Path(__file__).parent
"""The folder of the files that ship with Aviary."""

EXTENDS: Final = "extends"
_MODEL_ID: Final[KeyPath] = ("model_config", "model_id")
_MAX_FILE_NAME_BYTES: Final = 255


@dataclass(frozen=True, slots=True)
class Registry:
    """The validated content of one folder."""

    entries: Mapping[str, RegistryEntry]
    """Model id → its entry; enabled ones only, in order of their files' names."""
    files: Mapping[str, Path]
    """Model id → the file it comes from."""
    disabled: Mapping[Path, RegistryEntry] = field(default_factory=dict)
    """Files that say `enabled: false`: validated, but not part of the registry."""

    def select(self, model_ids: Iterable[str]) -> tuple[RegistryEntry, ...]:
        """These models, each once, in the order given. Raises `RegistryError` naming all unknown ids."""
        wanted = dict.fromkeys(model_ids)
        problems = [Problem("", "", self._why_unknown(model_id)) for model_id in wanted if model_id not in self.entries]
        if problems:
            raise RegistryError(problems)
        return tuple(self.entries[model_id] for model_id in wanted)

    def _why_unknown(self, model_id: str) -> str:
        for file, entry in self.disabled.items():
            if entry.model_id == model_id:
                return f"model {model_id} is disabled by `enabled: false` in {file}"
        known = ", ".join(self.entries)
        return f"model {shown(model_id)} is not in the registry{closest(model_id, self.entries)} (known: {known})"


def load_registry(folder: Path, *, zoo: Path = ZOO) -> Registry:
    """Every `*.yaml` and `*.yml` directly in the folder. Raises `RegistryError` with all problems of all files."""
    reader = _Reader(folder, zoo)
    files = _registry_files(folder)
    loaded = {file: entry for file in files if (entry := reader.entry(file)) is not None}
    enabled = {file: entry for file, entry in loaded.items() if entry.enabled}
    problems = [*reader.problems, *_duplicates(reader)]
    if not problems and not enabled:
        problems.append(Problem(str(folder), "", "has no enabled model; every file says `enabled: false`"))
    if problems:
        raise RegistryError(problems)
    return Registry(
        entries={entry.model_id: entry for entry in enabled.values()},
        files={entry.model_id: file for file, entry in enabled.items()},
        disabled={file: entry for file, entry in loaded.items() if not entry.enabled},
    )


def load_entry(path: Path, *, zoo: Path = ZOO) -> RegistryEntry:
    """One file, whether enabled or not. Raises `RegistryError` with all its problems."""
    reader = _Reader(path.parent, zoo)
    entry = reader.entry(path)
    if entry is None or reader.problems:
        raise RegistryError(reader.problems)
    return entry


def _registry_files(folder: Path) -> list[Path]:
    """Hidden files are left out: editors keep their swap and lock files beside the real one."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise RegistryError([Problem(str(folder), "", f"the registry folder {reason}")]) from None
    files = [folder / name for name in names if name.endswith(REGISTRY_SUFFIXES) and not name.startswith(".")]
    if not files:
        raise RegistryError([Problem(str(folder), "", "the registry folder holds no *.yaml file; add one per model")])
    return files


def _duplicates(reader: _Reader) -> list[Problem]:
    first: dict[str, Path] = {}
    problems = []
    for file, model_id in reader.model_ids.items():
        other = first.setdefault(model_id, file)
        if other != file:
            message = f"{model_id} is already the id of {reader.label(other)}; ids must be unique in a folder"
            problems.append(Problem(reader.label(file), key_text(_MODEL_ID), message))
    return problems


@dataclass(frozen=True, slots=True)
class _Source:
    """One file's own keys, before anything it extends."""

    path: Path
    data: Mapping[str, Any]
    refused: tuple[KeyPath, ...]
    """Places already reported; what the schema says about them would only repeat it."""


class _Reader:
    """Reads files and what they extend, each once, and collects what is wrong with them."""

    def __init__(self, folder: Path, zoo: Path) -> None:
        self._folder = folder
        self._zoo = zoo
        self._sources: dict[Path, _Source | None] = {}
        self._problems: dict[Problem, None] = {}
        self.model_ids: dict[Path, str] = {}
        """Files that are enabled, or may be, and the ids they claim."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        return tuple(self._problems)

    def label(self, path: Path) -> str:
        """How messages call a file: by its name, unless it lies elsewhere."""
        return path.name if path.parent == self._folder else str(path)

    def entry(self, path: Path) -> RegistryEntry | None:
        """The file's entry, or None after reporting why there is none."""
        chain = self._chain(path)
        if chain is None:
            return None
        merged = _merged_chain(chain)
        refused = [place for source in chain for place in source.refused]
        if len(chain) > 1 and value_at(merged, _MODEL_ID) is ABSENT:
            self._report(path, _MODEL_ID, self._needs_own_id(chain[1]))
            refused.append(_MODEL_ID)
        self._check_id(path, merged)
        try:
            return RegistryEntry.model_validate(merged, by_alias=True, by_name=False)
        except ValidationError as error:
            for key, message in problems_of(error, merged):
                if not any(key[: len(place)] == place for place in refused):
                    self._report(path, key, message + self._inherited(chain, key))
            return None

    def _check_id(self, path: Path, merged: Mapping[str, Any]) -> None:
        """Remembers the file's id and checks its name by it, whatever else is wrong with the file."""
        model_id = value_at(merged, _MODEL_ID)
        if not isinstance(model_id, str) or not is_model_id(model_id):
            return
        if merged.get("enabled") is not False:
            self.model_ids[path] = model_id
        if not is_file_name_of(path.name, model_id):
            message = f"{model_id} needs a file name that starts with its own; rename the file to "
            self._report(path, _MODEL_ID, f"{message}{file_name_of(model_id)} or add -<extra> before the suffix")

    def _report(self, path: Path, key: KeyPath, message: str) -> None:
        self._problems[Problem(self.label(path), key_text(key), message)] = None

    def _inherited(self, chain: Sequence[_Source], key: KeyPath) -> str:
        """Names the base that set a value, as the end of a message about it."""
        origin = next((source for source in chain if value_at(source.data, key) is not ABSENT), chain[0])
        return "" if origin is chain[0] else f" (inherited from {self.label(origin.path)})"

    def _needs_own_id(self, base: _Source) -> str:
        base_id = value_at(base.data, _MODEL_ID)
        hint = "" if base_id is ABSENT else f"; {base_id} of {self.label(base.path)} would be a duplicate id"
        return f"is required: a file that extends another sets its own{hint}"

    def _source(self, path: Path) -> _Source | None:
        if path not in self._sources:
            self._sources[path] = self._read(path)
        return self._sources[path]

    def _read(self, path: Path) -> _Source | None:
        document = read_yaml(path)
        for refusal in document.refusals:
            self._report(path, refusal.path, refusal.message)
        if not document.is_complete:
            return None
        if not isinstance(document.data, dict):
            self._report(path, (), f"holds {shown(document.data)}, not a mapping with `model_config`")
            return None
        return _Source(path, document.data, tuple(refusal.path for refusal in document.refusals))

    def _chain(self, path: Path) -> list[_Source] | None:
        """The file, what it extends, what that extends, and so on. None after reporting a broken link."""
        chain: list[_Source] = []
        following: Path | None = path
        while following is not None:
            source = self._source(following)
            if source is None:
                return None
            chain.append(source)
            if EXTENDS not in source.data:
                return chain
            following = self._base(chain)
        return None

    def _base(self, chain: Sequence[_Source]) -> Path | None:
        """The file that the chain's last one extends. None after reporting why there is none."""
        source = chain[-1]
        name = source.data[EXTENDS]
        if not isinstance(name, str) or not _is_plain_file_name(name):
            message = f"{shown(name)} is not a plain file name, such as mosaicml--mpt-7b-instruct.yaml"
            self._report(source.path, (EXTENDS,), message)
            return None
        candidates = [folder / name for folder in dict.fromkeys((source.path.parent, self._zoo))]
        base = next((path for path in candidates if path != source.path and path.exists()), None)
        if base is None:
            self._report(source.path, (EXTENDS,), self._no_base(source.path, name, candidates))
        elif any(base == other.path for other in chain):
            loop = " → ".join(self.label(path) for path in (*(other.path for other in chain), base))
            self._report(chain[0].path, (EXTENDS,), f"files extend each other in a circle: {loop}")
            return None
        return base

    def _no_base(self, path: Path, name: str, candidates: Sequence[Path]) -> str:
        if candidates == [path]:
            return f"{name} extends itself"
        folders = " nor in ".join(str(candidate.parent) for candidate in candidates)
        siblings = {file.name for candidate in candidates for file in candidate.parent.glob("*.yaml")} - {path.name}
        return f"{name} is neither in {folders}{closest(name, siblings)}"


def _is_plain_file_name(name: str) -> bool:
    has_folder = "/" in name or "\\" in name or "\0" in name
    return name.endswith(REGISTRY_SUFFIXES) and not has_folder and len(name.encode()) <= _MAX_FILE_NAME_BYTES


def _merged_chain(chain: Sequence[_Source]) -> dict[str, Any]:
    """What the chain's first file says in full: bases first, each file over what it extends."""
    merged: dict[str, Any] = {}
    for source in reversed(chain):
        is_base = source is not chain[0]
        merged = _merged(merged, _inheritable(source.data) if is_base else source.data, (RegistryEntry,))
    merged.pop(EXTENDS, None)
    return merged


def _inheritable(data: Mapping[str, Any]) -> dict[str, Any]:
    """A base without what is true of its own file only: its id, and whether it is enabled."""
    kept = {key: value for key, value in data.items() if key != "enabled"}
    model = kept.get("model_config")
    if isinstance(model, Mapping):
        kept["model_config"] = {key: value for key, value in model.items() if key != "model_id"}
    return kept


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], sections: Sequence[type[Section]]) -> dict[str, Any]:
    """Deep merge: mappings join, anything else replaces, and so does a mapping of another `type`.

    A key given under another of its names replaces it too.
    """
    if any(type_of(section) for section in sections) and over.get("type", base.get("type")) != base.get("type"):
        return dict(over)
    names = keys_of(sections)
    replaced = {name for key in over for name in names.get(key, ()) if name != key}
    merged = {key: value for key, value in base.items() if key not in replaced}
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(below, value, sections_under(sections, key))
        else:
            merged[key] = value
    return merged
