"""A folder that is already on the machine: checked, never copied and never written to.

Also says what any folder must hold to be loadable, because a snapshot of the Hub or of a mirror is checked the same
way. Called by `fetch_model`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from workers.errors import SourceError


def find_local_folder(folder: Path) -> Path:
    """The folder itself when a model can be loaded from it. Raises `SourceError` saying what is missing."""
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist on this node"
        raise SourceError(f"hf_model_id {folder} {state}; give an absolute folder that every node can read")
    require_loadable(folder, str(folder))
    return folder


def require_loadable(folder: Path, origin: str) -> None:
    """Raises `SourceError` unless `folder` holds a config.json and weights as safetensors."""
    require_model_files([path.relative_to(folder).as_posix() for path in folder.rglob("*")], origin, "hf_model_id")


def require_model_files(names: Collection[str], origin: str, key: str) -> None:
    """The same for names relative to a folder, before they are fetched; `key` of the registry is what gave `origin`."""
    if "config.json" not in names:
        gguf_files = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
        if len(gguf_files) == 1:
            raise SourceError(
                f"{origin} holds {gguf_files[0]} and no config.json: a single GGUF file cannot be loaded from a "
                "folder; give the model's Hugging Face folder with safetensors weights"
            )
        raise SourceError(f"{origin} holds no config.json, so it is not a Hugging Face model; check {key}")
    if not any(name.endswith(".safetensors") for name in names):
        raise SourceError(
            f"{origin} has no safetensors weights, and pickled weights are refused because loading them runs code; "
            "choose a revision or a conversion with *.safetensors files"
        )
