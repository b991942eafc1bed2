"""A local folder is used as it is, or the error says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.errors import SourceError
from workers.sources.local import find_local_folder


def test_a_complete_folder_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_local_folder(tmp_path) == tmp_path


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"hf_model_id {tmp_path}/none does not exist on this node"):
        find_local_folder(tmp_path / "none")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(SourceError, match=r"model\.gguf is not a folder"):
        find_local_folder(tmp_path / "model.gguf")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no config\.json"):
        find_local_folder(tmp_path)


def test_a_folder_with_one_gguf_file_only_is_refused_by_that_name(tmp_path: Path) -> None:
    (tmp_path / "llama.Q4_0.gguf").write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds llama\.Q4_0\.gguf and no config\.json"):
        find_local_folder(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match="no safetensors weights, and pickled weights are refused"):
        find_local_folder(tmp_path)
