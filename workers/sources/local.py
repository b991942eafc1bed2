"""A folder that is already on the machine: checked, never copied and never written to.

Also says what any folder must hold to be loadable, because a snapshot from the Hub is checked the same way.
Called by `fetch_model`.
"""

from __future__ import annotations

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
    if not (folder / "config.json").is_file():
        gguf_files = sorted(path.name for path in folder.glob("*.gguf"))
        if len(gguf_files) == 1:
            raise SourceError(
                f"{origin} holds {gguf_files[0]} and no config.json: a single GGUF file cannot be loaded from a "
                "folder; give the model's Hugging Face folder with safetensors weights"
            )
        raise SourceError(f"{origin} holds no config.json, so it is not a Hugging Face model; check hf_model_id")
    if not any(folder.rglob("*.safetensors")):
        raise SourceError(
            f"{origin} has no safetensors weights, and pickled weights are refused because loading them runs code; "
            "choose a revision or a conversion with *.safetensors files"
        )
