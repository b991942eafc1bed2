"""Which source a registry entry chooses, and what no source can honour."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_registry.schema import ModelConfig
from workers import sources
from workers.errors import SourceError
from workers.sources import SourceKind, fetch_model, source_of

PACKAGE = {"distribution": "d", "version": "1", "file": "d/model.gguf", "sha256": "0" * 64}

S3 = {"bucket_uri": "s3://bucket/m/"}
GCS = {"bucket_uri": "gs://bucket/m/"}


def model(*, from_pretrained_kwargs: dict[str, Any] | None = None, **initialization: Any) -> ModelConfig:
    initializer = {"type": "SingleDevice", "from_pretrained_kwargs": from_pretrained_kwargs or {}}
    return ModelConfig.model_validate(
        {"model_id": "org/model", "initialization": {"initializer": initializer, **initialization}}
    )


def ignore(_line: str) -> None:
    pass


@pytest.mark.parametrize(
    ("initialization", "kind"),
    [
        ({}, SourceKind.HUGGING_FACE),
        ({"hf_model_id": "other/model"}, SourceKind.HUGGING_FACE),
        ({"hf_model_id": "/models/m"}, SourceKind.LOCAL_FOLDER),
        ({"python_package": PACKAGE}, SourceKind.PYTHON_PACKAGE),
        ({"s3_mirror_config": S3}, SourceKind.S3_MIRROR),
        ({"s3_mirror_config": S3, "hf_model_id": "other/model"}, SourceKind.S3_MIRROR),
        ({"gcs_mirror_config": GCS}, SourceKind.GCS_MIRROR),
    ],
)
def test_the_keys_given_choose_the_source(initialization: dict[str, Any], kind: SourceKind) -> None:
    assert source_of(model(**initialization)) is kind


def test_the_examples_of_the_documentation_choose_their_sources() -> None:
    page = Path(sources.__file__).parents[2] / "docs" / "sources.md"
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
    models = [ModelConfig.model_validate({"model_id": "org/model", "initialization": example}) for example in examples]
    assert list(dict.fromkeys(source_of(model) for model in models)) == list(SourceKind)


def test_every_kind_of_source_has_its_function() -> None:
    assert set(sources._FETCHERS) == set(SourceKind)


def test_two_sources_at_once_are_refused() -> None:
    with pytest.raises(SourceError, match="org/model: give either python_package or hf_model_id, not both"):
        source_of(model(python_package=PACKAGE, hf_model_id="other/model"))


@pytest.mark.parametrize("name", ["weights.bin", "modeling.py", "a.json/b.bin"])
def test_an_extra_file_that_could_run_code_is_refused_by_name(name: str) -> None:
    extra = [{"bucket_uri": "s3://bucket/x", "destination_path": name}]
    with pytest.raises(SourceError, match=rf"org/model: extra_files: {name} is not a file that may be fetched"):
        source_of(model(s3_mirror_config={**S3, "extra_files": extra}))


def test_extra_files_may_be_code_where_it_is_trusted_but_not_file_and_folder_at_once() -> None:
    extra = [{"bucket_uri": "s3://bucket/x", "destination_path": name} for name in ("a.py", "a.py/b.json")]
    trusting = {"trust_remote_code": True}
    source_of(model(s3_mirror_config={**S3, "extra_files": extra[:1]}, from_pretrained_kwargs=trusting))
    with pytest.raises(SourceError, match="file and folder at once"):
        source_of(model(s3_mirror_config={**S3, "extra_files": extra}, from_pretrained_kwargs=trusting))


@pytest.mark.parametrize("key", ["cache_dir", "force_download", "proxies", "code_revision"])
def test_arguments_of_the_hub_that_are_not_honoured_are_refused_by_name(key: str) -> None:
    with pytest.raises(SourceError, match=rf"from_pretrained_kwargs\.{key} is not supported; "):
        source_of(model(from_pretrained_kwargs={key: "x"}))


def test_a_revision_means_nothing_for_a_folder() -> None:
    with pytest.raises(
        SourceError, match=r"from_pretrained_kwargs\.revision means nothing for weights from hf_model_id"
    ):
        source_of(model(hf_model_id="/models/m", from_pretrained_kwargs={"revision": "main"}))


def test_a_revision_means_nothing_for_a_mirror() -> None:
    with pytest.raises(SourceError, match=r"revision means nothing for weights from s3_mirror_config"):
        source_of(model(s3_mirror_config=S3, from_pretrained_kwargs={"revision": "main"}))


def test_the_hub_gets_the_id_and_the_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def fetch_snapshot(repository: str, arguments: dict[str, Any], _progress: object) -> Path:
        calls.append((repository, arguments))
        return tmp_path

    monkeypatch.setattr(sources, "fetch_snapshot", fetch_snapshot)
    arguments = {"revision": "v2", "trust_remote_code": True}
    assert fetch_model(model(from_pretrained_kwargs=arguments), tmp_path, ignore) == tmp_path
    fetch_model(model(hf_model_id="other/model"), tmp_path, ignore)
    assert calls == [("org/model", arguments), ("other/model", {})]


def test_a_package_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"python_package\.file 'd/model\.bin' must be a \.gguf file"):
        fetch_model(model(python_package={**PACKAGE, "file": "d/model.bin"}), tmp_path, ignore)


def test_a_cache_that_cannot_be_written_is_one_line_with_its_path(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file where the folder should be")
    with pytest.raises(SourceError, match=rf"^org/model: .*; check the disk and {cache}$"):
        fetch_model(model(python_package=PACKAGE), cache, ignore)
