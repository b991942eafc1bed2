"""Turns a GGUF file into a normal Hugging Face folder, once per node: float32 safetensors, configuration, tokenizer.

De-quantised tensor by tensor, so it needs the memory of the largest tensor only, and neither torch nor accelerate.
The result loads without `gguf`. Called by `fetch_model`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from workers.errors import SourceError
from workers.sources.cache import partial_folder, require_free_space
from workers.sources.lock import file_lock
from workers.sources.progress import Progress

CONVERTER_VERSION: Final = 1
"""Grows when the same GGUF would give another folder; old folders are then left alone and not used."""
_MANIFEST = "aviary-conversion.json"
_WEIGHTS = "model.safetensors"
_REPORT_EVERY = 10


def find_converted(sha256: str, cache_dir: Path) -> Path | None:
    """The complete folder made from the GGUF of that checksum, if there is one."""
    folder = _target(sha256, cache_dir)
    try:
        sizes = json.loads((folder / _MANIFEST).read_bytes())["file_bytes"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return folder if sizes == _file_bytes(folder) else None


def convert_gguf(source: Path, sha256: str, cache_dir: Path, progress: Progress) -> Path:
    """The folder made from `source`, whose checksum is `sha256`. Raises `SourceError` for models it cannot convert."""
    target = _target(sha256, cache_dir)
    with file_lock(cache_dir / "locks" / f"{target.name}.lock", f"converting {source.name}", progress):
        converted = find_converted(sha256, cache_dir)
        if converted is not None:
            return converted
        with partial_folder(target) as folder:
            _convert_into(folder, source, progress)
            _write_manifest(folder, source.name, sha256)
    return target


def _target(sha256: str, cache_dir: Path) -> Path:
    return cache_dir / "converted" / f"{sha256}-v{CONVERTER_VERSION}"


def _file_bytes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _MANIFEST}


def _write_manifest(folder: Path, source_name: str, sha256: str) -> None:
    manifest = {
        "source": source_name,
        "source_sha256": sha256,
        "converter_version": CONVERTER_VERSION,
        "file_bytes": _file_bytes(folder),
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _convert_into(folder: Path, source: Path, progress: Progress) -> None:
    from workers.sources import gguf_llama
    from workers.sources.gguf_file import GgufFile
    from workers.sources.gguf_tokenizer import build_tokenizer
    from workers.sources.safetensors_writer import num_bytes_float32, write_float32

    progress(f"converting weights: reading {source.name}")
    file = GgufFile(source)
    architecture = file.require("general.architecture", str)
    if architecture != gguf_llama.ARCHITECTURE:
        raise SourceError(
            f"{source.name}: architecture {architecture!r} is not supported, only {gguf_llama.ARCHITECTURE!r} is; "
            "use a Hugging Face repository of this model"
        )
    layout = gguf_llama.LlamaLayout(file)
    config = layout.config()
    tokenizer = build_tokenizer(file, config["max_position_embeddings"])
    require_free_space(folder, num_bytes_float32(layout.shapes), f"converting {source.name}")
    tokenizer.save_pretrained(folder)
    _save_configs(folder, config, file)
    write_float32(folder / _WEIGHTS, layout.shapes, _counted(layout.load, len(layout.shapes), progress))


def _save_configs(folder: Path, config: dict[str, Any], file: Any) -> None:
    from transformers import GenerationConfig, LlamaConfig

    from workers.sources.gguf_tokenizer import read_special_token_ids

    ids = read_special_token_ids(file)
    special = {"bos_token_id": ids.bos, "eos_token_id": ids.stops, "pad_token_id": ids.pad}
    LlamaConfig(**config, **special).save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)


def _counted(load: Callable[[str], Any], num_tensors: int, progress: Progress) -> Callable[[str], Any]:
    """`load`, reporting as it goes."""
    num_done = 0

    def load_and_count(name: str) -> Any:
        nonlocal num_done
        array = load(name)
        num_done += 1
        if num_done % _REPORT_EVERY == 0 or num_done == num_tensors:
            progress(f"converting weights: {num_done} of {num_tensors} tensors")
        return array

    return load_and_count
