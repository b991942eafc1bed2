"""A copy of a model in a bucket: what of it is needed, which snapshot it is, and its folder on this node.

    mirrors/<model>-<mirror>-<snapshot>/    complete and verified
    mirrors/<model>-<mirror>.partial/       what an interrupted download has so far

A file `hash` below the prefix names the snapshot, as in the first Aviary; without one the versions of the objects do.
Never asks anybody but the bucket. Called by `fetch_model`, and by initializers that need a single file of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from model_registry.s3_sync_args import parse_s3_sync_args
from model_registry.schema import GcsExtraFile, GcsMirrorConfig, LlamaCpp, ModelConfig, S3ExtraFile, S3MirrorConfig
from workers.errors import SourceError
from workers.sources.checksums import SHA256SUMS, parse_sha256sums
from workers.sources.gcs import GcsStore
from workers.sources.local import require_model_files
from workers.sources.lock import file_lock
from workers.sources.model_files import FileSelection, check_names
from workers.sources.object_store import Checksum, ObjectChangedError, ObjectStore, RemoteFile
from workers.sources.progress import Progress
from workers.sources.ranged_download import Wanted, download
from workers.sources.s3 import S3Store

HASH: Final = "hash"
MANIFEST: Final = "aviary-mirror.json"
_HASH_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NUM_CHANGES: Final = 3
"""Times that a mirror may change under a download before it is given up."""
_WAIT_TIMEOUT_S: Final = 6 * 3600.0
"""Longest wait for another process of the node that fetches the same: large models over slow networks take hours."""

MirrorConfig = S3MirrorConfig | GcsMirrorConfig
ExtraFile = S3ExtraFile | GcsExtraFile


@dataclass(frozen=True, slots=True)
class Place:
    """Where objects lie: keys that begin with `prefix`, which is empty or ends with a slash."""

    bucket: str
    prefix: str

    @classmethod
    def of(cls, uri: str) -> Place:
        bucket, _, prefix = uri.partition("://")[2].partition("/")
        return cls(bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/")


def fetch_mirror(model: ModelConfig, cache_dir: Path, progress: Progress) -> Path:
    """The folder with the model's files out of its mirror; for LlamaCpp, with its `model_filename` and nothing else.

    Raises `SourceError` when the mirror cannot be read, lacks what the model needs, or fails its checksums; `OSError`
    when the disk fails. `fetch_model` does the same for every source, with one line for the disk too.
    """
    return Mirror(model).fetch(cache_dir, progress)


def check_mirror(model: ModelConfig) -> None:
    """Raises `SourceError` for what can be told wrong without a network."""
    config = _config(model)
    selection = FileSelection.of(model)
    destinations = [extra.destination_path for extra in config.extra_files if not extra.bucket_uri.endswith("/")]
    for path in destinations:
        if not selection.allows(path):
            raise SourceError(
                f"{model.model_id}: extra_files: {path} is not a file that may be fetched; data files are "
                "safetensors, GGUF, JSON, text, tokenizers and templates, code needs trust_remote_code"
            )
    check_names(destinations, f"{model.model_id}: extra_files")


class Mirror:
    """The mirror of one model. Talks to the bucket only in `fetch`."""

    def __init__(self, model: ModelConfig) -> None:
        check_mirror(model)
        self._config = _config(model)
        self._place = Place.of(self._config.bucket_uri)
        self._uri = self._config.bucket_uri
        self._is_single_file = isinstance(model.initialization.initializer, LlamaCpp)
        self._selection = FileSelection.of(model)
        self._is_synced = _sync_filter(self._config)
        self._name = f"{_slug(model)}-{_fingerprint(self._identity())}"

    def fetch(self, cache_dir: Path, progress: Progress) -> Path:
        folder = cache_dir / "mirrors"
        folder.mkdir(parents=True, exist_ok=True)
        lock = cache_dir / "locks" / f"{self._name}.lock"
        with file_lock(lock, f"fetching {self._uri}", progress, timeout_s=_WAIT_TIMEOUT_S):
            progress(f"fetching weights: {self._uri}")
            store = _open_store(self._config)
            for _ in range(_NUM_CHANGES):
                try:
                    return self._fetch(store, folder, progress)
                except ObjectChangedError:
                    progress(f"fetching weights: {self._uri} has changed, looking at it again")
        raise SourceError(f"{self._uri} changes all the time; load the model again when its upload is complete")

    def _identity(self) -> list[Any]:
        """Everything that decides which files this mirror gives, apart from their content."""
        extra_files = [(extra.bucket_uri, extra.destination_path) for extra in self._config.extra_files]
        return [self._uri, *_facts_of_config(self._config), extra_files, asdict(self._selection)]

    def _fetch(self, store: ObjectStore, folder: Path, progress: Progress) -> Path:
        published = self._read_hash(store)
        if published is not None and _is_complete(target := self._target(folder, published)):
            return target
        wanted = self._list(store)
        target = self._target(folder, published or _fingerprint([_facts(one) for one in wanted]))
        if _is_complete(target):
            return target
        scratch = folder / f"{self._name}.partial"
        files = download(store, wanted, scratch, progress)
        _publish(files, target, scratch, self._uri)
        return target

    def _target(self, folder: Path, snapshot: str) -> Path:
        return folder / f"{self._name}-{snapshot}"

    def _read_hash(self, store: ObjectStore) -> str | None:
        content = store.read_small(self._place.bucket, self._place.prefix + HASH)
        if content is None:
            return None
        published = content.decode(errors="replace").strip()
        if not _HASH_PATTERN.fullmatch(published):
            raise SourceError(
                f"the file {HASH} of {self._uri} must hold one word of letters, digits, dots, dashes and underscores, "
                f"not {published[:50]!r}; write the commit of the model into it, or remove it"
            )
        return published

    def _list(self, store: ObjectStore) -> list[Wanted]:
        """Every file that is to be fetched, by name; raises `SourceError` unless they make a model."""
        listed = _relative(store.list_files(self._place.bucket, self._place.prefix), self._place.prefix)
        if not listed:
            raise SourceError(f"{self._uri} holds no objects; correct bucket_uri")
        checksums = self._read_checksums(store, listed)
        synced = {name: file for name, file in listed.items() if self._is_synced(name)}
        check_names(synced, self._uri)
        files = {name: file for name, file in synced.items() if self._selection.selects(name)}
        self._require(files, checksums)
        files |= self._list_extra_files(store)
        check_names(files, self._uri)
        return [Wanted(name, files[name], checksums.get(name)) for name in sorted(files)]

    def _read_checksums(self, store: ObjectStore, listed: Mapping[str, RemoteFile]) -> Mapping[str, Checksum]:
        file = listed.get(SHA256SUMS)
        content = store.read_small(file.bucket, file.key) if file is not None else None
        return parse_sha256sums(content, f"{self._uri}{SHA256SUMS}") if content is not None else {}

    def _require(self, files: Mapping[str, RemoteFile], checksums: Mapping[str, Checksum]) -> None:
        for name in checksums:
            if name not in files and self._is_synced(name) and self._selection.selects(name):
                raise SourceError(f"{self._uri} lacks {name}, which its {SHA256SUMS} names; complete the upload")
        if not self._is_single_file:
            require_model_files(files.keys(), self._uri, "bucket_uri and the excludes")
            return
        for name in self._selection.names:
            if name not in files:
                raise SourceError(f"{self._uri} holds no {name!r}; correct initializer.model_filename or bucket_uri")

    def _list_extra_files(self, store: ObjectStore) -> dict[str, RemoteFile]:
        found: dict[str, RemoteFile] = {}
        for extra in self._config.extra_files:
            files = self._list_extra(store, extra)
            if not files:
                raise SourceError(f"extra_files: {extra.bucket_uri} holds no file to fetch; correct its bucket_uri")
            found |= files
        return found

    def _list_extra(self, store: ObjectStore, extra: ExtraFile) -> dict[str, RemoteFile]:
        if extra.bucket_uri.endswith("/"):
            place = Place.of(extra.bucket_uri)
            listed = _relative(store.list_files(place.bucket, place.prefix), place.prefix)
            check_names(listed, extra.bucket_uri)
            selected = {name: file for name, file in listed.items() if self._selection.selects(name)}
            return {f"{extra.destination_path.rstrip('/')}/{name}": file for name, file in selected.items()}
        bucket, _, key = extra.bucket_uri.partition("://")[2].partition("/")
        first = next(iter(store.list_files(bucket, key)), None)  # keys come in order, and none sorts before its prefix
        return {extra.destination_path: first} if first is not None and first.key == key else {}


def _config(model: ModelConfig) -> MirrorConfig:
    config = model.initialization.s3_mirror_config or model.initialization.gcs_mirror_config
    if config is None:
        raise TypeError(f"{model.model_id} has no mirror")
    return config


def _open_store(config: MirrorConfig) -> ObjectStore:
    if isinstance(config, S3MirrorConfig):
        return S3Store(config)
    return GcsStore()


def _sync_filter(config: MirrorConfig) -> Callable[[str], bool]:
    """Whether the file of a name takes part at all; only S3's arguments leave files out."""
    if isinstance(config, S3MirrorConfig):
        return parse_s3_sync_args(config.s3_sync_args).selects
    return lambda _name: True


def _facts_of_config(config: MirrorConfig) -> list[Any]:
    if not isinstance(config, S3MirrorConfig):
        return []
    arguments = parse_s3_sync_args(config.s3_sync_args)
    filters = [(one.pattern, one.includes) for one in arguments.filters]
    return [config.endpoint_url or arguments.endpoint_url, filters]


def _relative(files: Iterator[RemoteFile], prefix: str) -> dict[str, RemoteFile]:
    """Name below the prefix → file, without the empty objects that stand for folders."""
    return {file.key.removeprefix(prefix): file for file in files if file.size_bytes or not file.key.endswith("/")}


def _facts(one: Wanted) -> list[str | int]:
    return [one.name, one.remote.uri, one.remote.version, one.remote.size_bytes]


def _slug(model: ModelConfig) -> str:
    """The model as people know it: a mirror's `hf_model_id` is the repository that it copies."""
    name = model.initialization.hf_model_id or model.model_id
    return re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--"))[:100]


def _fingerprint(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _file_bytes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    sizes.pop(MANIFEST, None)
    return sizes


def _is_complete(folder: Path) -> bool:
    """Whether nothing of the folder was lost since it was published."""
    try:
        sizes = json.loads((folder / MANIFEST).read_bytes())["file_bytes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return bool(sizes.items() <= _file_bytes(folder).items())


def _publish(files: Path, target: Path, scratch: Path, uri: str) -> None:
    """Complete files become the folder, all at once."""
    manifest = {"source": uri, "file_bytes": _file_bytes(files)}
    (files / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if target.exists():
        shutil.rmtree(target)
    files.rename(target)
    shutil.rmtree(scratch)
