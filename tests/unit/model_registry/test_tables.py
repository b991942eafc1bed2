"""The README's tables and the JSON schema say what the schema says."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jsonschema
import pytest

from model_registry import tables as module
from model_registry.loader import ZOO, RegistryError, load_entry, load_registry
from model_registry.schema import RegistryEntry
from model_registry.strict_yaml import parse_yaml, read_yaml

CHECKER = jsonschema.Draft202012Validator(json.loads(module.JSON_SCHEMA.read_text(encoding="utf-8")))
STALE = "is stale; run python -m model_registry.tables --write"


def readme() -> str:
    return module.README.read_text(encoding="utf-8")


def test_the_readme_is_up_to_date() -> None:
    assert readme() == module.readme_with_tables(readme()), f"README.md {STALE}"


def test_the_json_schema_is_up_to_date() -> None:
    assert module.JSON_SCHEMA.read_text(encoding="utf-8") == module.json_schema_text(), f"registry.schema.json {STALE}"


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        module.readme_with_tables("# No markers")


def test_write_brings_both_files_up_to_date(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target, schema = tmp_path / "README.md", tmp_path / "schema.json"
    target.write_text(f"before {module.BEGIN} old {module.END} after", encoding="utf-8")
    monkeypatch.setattr(module, "README", target)
    monkeypatch.setattr(module, "JSON_SCHEMA", schema)
    monkeypatch.setattr(sys, "argv", ["tables", "--write"])
    module.main()
    written = target.read_text(encoding="utf-8")
    assert written.startswith("before ")
    assert written.endswith(" after")
    assert " old " not in written
    assert schema.read_text(encoding="utf-8") == module.json_schema_text()


def test_without_write_the_tables_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tables"])
    module.main()
    assert capsys.readouterr().out == module.tables()


@pytest.mark.parametrize(
    "row",
    [
        "| `max_batch_size` | whole number ≥ 1 | `1` | Sequences that one replica runs at the same time. |",
        "| `target_ongoing_requests` (old: `target_num_ongoing_requests_per_replica`) | number > 0 | `2.0` |",
        "| `temperature` | number ≥ 0, ≤ 2 | `1.0` |",
        "| `num_gpus` | number ≥ 0 |  |",
        "| `model_id` | text | *required* |",
        "| `prompt_format` | section or text |",
    ],
)
def test_a_row_shows_names_type_bounds_and_default(row: str) -> None:
    assert row in module.tables()


def test_no_table_comes_twice() -> None:
    titles = re.findall(r"^### .*", module.tables(), re.MULTILINE)
    assert len(titles) == len(set(titles))


def test_the_json_schema_is_one_and_knows_sections_old_names_and_extends() -> None:
    schema = module.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    whole, extending = schema["$defs"]["File"], schema["$defs"]["ExtendingFile"]
    assert set(whole["properties"]) == {"enabled", "deployment_config", "model_config", "scaling_config"}
    assert set(extending["properties"]) == {"extends", *whole["properties"]}
    old = schema["$defs"]["AutoscalingConfig"]["properties"]["target_num_ongoing_requests_per_replica"]
    assert old["deprecated"]


@pytest.mark.parametrize("file", sorted(path.name for path in ZOO.glob("*.yaml")))
def test_the_json_schema_and_the_loader_accept_the_zoo(file: str) -> None:
    CHECKER.validate(read_yaml(ZOO / file).data)
    load_entry(ZOO / file)


ECHO = "{model_id: a/b, initialization: {initializer: {type: Echo}}}"


def in_initialization(keys: str) -> str:
    return f"{{model_config: {{model_id: a/b, initialization: {{initializer: {{type: Echo}}, {keys}}}}}}}"


def in_generation(keys: str) -> str:
    return f"{{model_config: {{{ECHO[1:-1]}, generation: {{{keys}}}}}}}"


def loaded(text: str, folder: Any) -> RegistryEntry:
    file = folder / "a--b.yaml"
    file.write_text(text, encoding="utf-8")
    return load_entry(file)


def in_package(keys: str) -> str:
    """Of a model that is in no other way wrong."""
    package = f"python_package: {{file: m.gguf, sha256: '{'0' * 64}', {keys}}}"
    return in_initialization(package).replace("type: Echo", "type: LlamaCpp, model_filename: m.gguf")


PART = "{distribution: a, version: '1', file: a/0}, "
PARTS = f"parts: [{PART}{PART.replace('a', 'b')}]"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        f"{{model_config: {ECHO}, oops: 1}}",
        f"{{model_config: {ECHO}, scaling_config: {{num_workers: 0}}}}",
        "model_config: {model_id: a/b}",
        "model_config: {model_id: a/b, initialization: {initializer: {type: Eco}}}",
        "model_config: {model_id: -a, initialization: {initializer: {type: Echo}}}",
        "{extends: a.yaml, model_config: {}}",
        "{extends: 1, model_config: {model_id: a/b}}",
        "{extends: aviary--echo.yaml, model_config: {model_id: a/b, oops: 1}}",
        "{extends: aviary--echo.yaml, model_config: {model_id: a/b, generation: {max_batch_size: many}}}",
        f"{{model_config: {ECHO}, enabled: 1}}",
        f"{{model_config: {ECHO}, scaling_config: {{placement_strategy: PAK}}}}",
        f"{{model_config: {ECHO}, scaling_config: {{num_gpus_per_worker: -1}}}}",
        f"{{model_config: {ECHO}, scaling_config: {{pg_timeout_s: 0}}}}",
        f"{{model_config: {ECHO}, deployment_config: {{ray_actor_options: {{accelerator_type: ''}}}}}}",
        f"{{model_config: {ECHO}, deployment_config: {{ray_actor_options: {{runtime_env: {{conda: x}}}}}}}}",
        "{model_config: {model_id: a/b, initialization: {initializer: {type: Echo, dtype: float32}}}}",
        "{model_config: {model_id: a/b, initialization: {initializer: {type: LlamaCpp}}}}",
        in_initialization("runtime_env: {pip: einops}"),
        in_initialization("runtime_env: {env_vars: {A: 1}}"),
        in_initialization("pipeline: vllm"),
        in_package(""),
        in_package("distribution: a"),
        in_package("version: '1'"),
        in_package(f"parts: [{PART}]"),
        in_package("parts: [{distribution: a, file: a/0}, {distribution: b, file: b/0}]"),
        in_generation("stopping_sequences: stop"),
        in_generation("stopping_sequences: [1.5]"),
        in_generation("generate_kwargs: {temperature: 3}"),
        in_generation("generate_kwargs: {num_beams: 2}"),
        in_generation("prompt_format: [1]"),
        in_generation("prompt_format: {user: '{instruction}'}"),
        in_generation("max_input_tokens: 0"),
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(text: str, tmp_path: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        CHECKER.validate(parse_yaml(text).data)
    with pytest.raises(RegistryError):
        loaded(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        in_initialization("runtime_env: {pip: [a], uv: [b]}"),
        in_initialization("pipeline: llamacpp"),
        in_package(f"distribution: a, {PARTS}"),
        in_package(f"parts: [{PART}{PART}]"),
        in_generation("prompt_format: Hello"),
        in_generation("generate_kwargs: {max_new_tokens: 1, min_new_tokens: 2}"),
        f"{{model_config: {ECHO}, scaling_config: {{num_workers: 2}}}}",
        f"{{model_config: {ECHO}, scaling_config: {{num_gpus_per_worker: 1.5}}}}",
    ],
)
def test_rules_between_values_are_the_loaders_alone(text: str, tmp_path: Any) -> None:
    """No editor sees these; `aviary validate` does."""
    CHECKER.validate(parse_yaml(text).data)
    with pytest.raises(RegistryError):
        loaded(text, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        f"{{model_config: {ECHO}}}",
        f"{{enabled: false, model_config: {ECHO}}}",
        "{extends: aviary--echo.yaml, model_config: {model_id: a/b, initialization: {runtime_env: null}}}",
        in_initialization("runtime_env: {uv: [einops], env_vars: {A: '1'}, working_dir: /code}"),
        in_package("distribution: a, version: '1'"),
        in_package(PARTS),
        in_package(f"distribution: null, version: null, {PARTS}"),
        in_generation("max_input_words: 800"),
        in_generation("stopping_sequences: ['42', 42, [4, 2]]"),
        in_generation("prompt_format: {system: '{instruction}', user: '{instruction}', assistant: '{instruction}'}"),
        f"{{model_config: {ECHO}, scaling_config: {{num_gpus_per_worker: 0.5, pg_timeout_s: 60}}}}",
    ],
)
def test_the_json_schema_accepts_what_the_loader_accepts(text: str, tmp_path: Any) -> None:
    CHECKER.validate(parse_yaml(text).data)
    loaded(text, tmp_path)


def test_the_readmes_files_load_under_the_names_they_give_and_those_of_the_zoo_are_the_shipped_models(
    tmp_path: Any,
) -> None:
    examples = dict(re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", readme(), re.DOTALL))
    for name, text in examples.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    registry = load_registry(tmp_path)
    assert len(registry.entries) == len(examples) >= 6
    for name in ("aviary--echo.yaml", "mosaicml--mpt-7b-chat.yaml"):
        assert load_entry(tmp_path / name).model_id == load_entry(ZOO / name).model_id
    for text in examples.values():
        CHECKER.validate(parse_yaml(text).data)


def test_the_readmes_other_examples_are_parts_of_a_file() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", readme(), re.DOTALL)
    parts = [block for block in blocks if not re.match(r"# \S+\.yaml|# yaml-", block)]
    assert len(parts) >= 4
    for part in parts:
        values: Any = parse_yaml(part).data
        (key,) = values
        around = {"initializer": "initialization", "runtime_env": "initialization", "scaling_config": None}[key]
        example: dict[str, Any] = {"model_id": "a/b", "initialization": {"initializer": {"type": "Echo"}}}
        whole: dict[str, Any] = {"model_config": example}
        (whole if around is None else example[around]).update(values)
        RegistryEntry.model_validate(whole, by_alias=True, by_name=False)


def test_the_readmes_table_of_contents_leads_somewhere() -> None:
    headings = re.findall(r"^##+ (.*)$", readme(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", readme()))
    assert len(links) >= 12
    assert links <= anchors
