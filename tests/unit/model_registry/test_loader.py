"""A folder of files becomes a registry, or one list of everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model_registry.loader import ZOO, RegistryError, load_entry, load_registry
from model_registry.schema import DeepSpeed, Echo, LlamaCpp, SingleDevice

Write = Callable[[str, str], Path]

ECHO = """
model_config:
  model_id: {id}
  initialization: {{initializer: {{type: Echo}}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "registry"
    path.mkdir()
    return path


@pytest.fixture
def write(folder: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def problems_of(folder: Path, zoo: Path = ZOO) -> list[str]:
    with pytest.raises(RegistryError) as raised:
        load_registry(folder, zoo=zoo)
    return [str(problem) for problem in raised.value.problems]


def with_section(section: str, model_id: str = "foo/bar") -> str:
    return ECHO.format(id=model_id) + section


def in_generation(keys: str) -> str:
    return with_section(f"  generation:\n    {keys}\n")


def in_package(keys: str) -> str:
    package = f"{{file: m.gguf, sha256: '{'0' * 64}', {keys}}}"
    initialization = f"{{initializer: {{type: SingleDevice}}, python_package: {package}}}"
    return f"model_config: {{model_id: foo/bar, initialization: {initialization}}}\n"


class TestGoodFolders:
    def test_the_zoo_loads(self) -> None:
        registry = load_registry(ZOO)
        assert {
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "aviary/echo",
            "mosaicml/mpt-7b-chat",
            "mosaicml/mpt-7b-instruct",
        } <= registry.entries.keys()
        assert registry.files["aviary/echo"] == ZOO / "aviary--echo.yaml"

    def test_yml_counts_and_hidden_files_other_suffixes_and_subfolders_do_not(self, write: Write, folder: Path) -> None:
        write("a--b.yml", ECHO.format(id="a/b"))
        write(".a--c.yaml", "broken: [")
        write("notes.txt", "broken: [")
        (folder / "below").mkdir()
        (folder / "below" / "a--d.yaml").write_text("broken: [", encoding="utf-8")
        assert list(load_registry(folder).entries) == ["a/b"]

    def test_a_disabled_entry_is_validated_but_left_out(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", ECHO.format(id="a/b"))
        disabled = write("a--c.yaml", "enabled: false\n" + ECHO.format(id="a/c"))
        registry = load_registry(folder)
        assert list(registry.entries) == ["a/b"]
        assert registry.disabled[disabled].model_id == "a/c"
        write("a--c.yaml", "enabled: false\n" + ECHO.format(id="a/c") + "  oops: 1\n")
        assert len(problems_of(folder)) == 1

    def test_a_disabled_variant_may_share_the_id_of_an_enabled_one(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", ECHO.format(id="a/b"))
        write("a--b-gpu.yaml", "enabled: false\n" + ECHO.format(id="a/b"))
        assert list(load_registry(folder).entries) == ["a/b"]

    def test_one_file_loads_alone_even_when_disabled(self, write: Write) -> None:
        path = write("a--b.yaml", "enabled: false\n" + ECHO.format(id="a/b"))
        assert not load_entry(path).enabled

    def test_one_file_alone_has_all_its_problems_reported(self, write: Write) -> None:
        path = write("a--b.yaml", "enabled: 1\nfoo: 2\n" + ECHO.format(id="a/b"))
        with pytest.raises(RegistryError) as raised:
            load_entry(path)
        assert len(raised.value.problems) == 2


class TestSelect:
    def test_models_come_once_and_in_the_order_asked(self, write: Write, folder: Path) -> None:
        for name in ("b", "c", "d"):
            write(f"a--{name}.yaml", ECHO.format(id=f"a/{name}"))
        chosen = load_registry(folder).select(["a/d", "a/b", "a/d"])
        assert [entry.model_id for entry in chosen] == ["a/d", "a/b"]

    def test_every_unknown_id_is_named_with_the_known_ones(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", ECHO.format(id="a/b"))
        write("a--c.yaml", "enabled: false\n" + ECHO.format(id="a/c"))
        with pytest.raises(RegistryError) as raised:
            load_registry(folder).select(["a/b", "a/bb", "a/c", "x"])
        messages = [problem.message for problem in raised.value.problems]
        assert messages[0] == 'model "a/bb" is not in the registry; did you mean a/b? (known: a/b)'
        assert "a/c is disabled" in messages[1]
        assert messages[2] == 'model "x" is not in the registry (known: a/b)'


class TestBadFolders:
    def test_a_missing_folder_is_one_clear_error(self, tmp_path: Path) -> None:
        assert problems_of(tmp_path / "none") == [f"{tmp_path / 'none'}: the registry folder does not exist"]

    def test_a_file_instead_of_a_folder_is_one_clear_error(self, write: Write) -> None:
        (problem,) = problems_of(write("a--b.yaml", ECHO.format(id="a/b")))
        assert "Not a directory" in problem

    def test_an_empty_folder_is_one_clear_error(self, folder: Path) -> None:
        (problem,) = problems_of(folder)
        assert "holds no *.yaml file" in problem

    def test_a_folder_of_disabled_models_is_one_clear_error(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", "enabled: false\n" + ECHO.format(id="a/b"))
        (problem,) = problems_of(folder)
        assert "no enabled model" in problem

    def test_a_duplicate_id_names_both_files(self, write: Write, folder: Path) -> None:
        write("a--b-one.yaml", ECHO.format(id="a/b"))
        write("a--b-two.yaml", ECHO.format(id="a/b"))
        assert problems_of(folder) == [
            "a--b-two.yaml: model_config.model_id: a/b is already the id of a--b-one.yaml; "
            "ids must be unique in a folder"
        ]

    def test_a_duplicate_id_is_found_even_when_the_file_has_other_problems(self, write: Write, folder: Path) -> None:
        write("a--b-one.yaml", ECHO.format(id="a/b"))
        write("a--b-two.yaml", ECHO.format(id="a/b") + "oops: 1\n")
        unknown, duplicate = problems_of(folder)
        assert "oops: unknown key" in unknown
        assert "already the id of a--b-one.yaml" in duplicate

    def test_a_file_of_another_name_says_how_to_rename_it(self, write: Write, folder: Path) -> None:
        write("bar.yaml", ECHO.format(id="foo/bar"))
        (problem,) = problems_of(folder)
        assert problem.startswith("bar.yaml: model_config.model_id: foo/bar needs a file name")
        assert "foo--bar.yaml" in problem

    def test_all_problems_of_all_files_are_reported_at_once(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", "x: &a 1\ny: *a\n")
        write("c--d.yaml", with_section("oops: 1\nenabled: maybe\n", "c/d") + "  generation: {max_batch_size: 0}\n")
        write("e--f.yaml", "")
        (folder / "g--h.yaml").write_bytes(b"\xff\xfe")
        (folder / "i--j.yaml").symlink_to("i--j.yaml")
        write("k--l.yaml", "- a\n")
        write("m--n.yaml", in_generation("max_batch_size: 0\n    kv_cache_tokens: many\n    kv_cache_tokens: 3"))
        with pytest.raises(RegistryError) as raised:
            load_registry(folder)
        files = [problem.file for problem in raised.value.problems]
        assert files == [
            *["a--b.yaml"] * 2,
            "c--d.yaml",
            "e--f.yaml",
            "g--h.yaml",
            "i--j.yaml",
            "k--l.yaml",
            *["m--n.yaml"] * 3,
        ]
        assert all(str(problem) in str(raised.value) for problem in raised.value.problems)
        lines = str(raised.value).splitlines()
        assert lines[0] == "10 problems in the model registry:"
        assert len(lines) == 11


class TestMessages:
    """What a file says wrongly, and what its author reads."""

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (
                in_generation("max_batch_size: 0"),
                "model_config.generation.max_batch_size: 0 is not greater than or equal to 1",
            ),
            (
                in_generation('max_batch_size: "4"'),
                'model_config.generation.max_batch_size: "4" is not a whole number but text; '
                "write it without quotes and leading zeros",
            ),
            (
                in_generation("max_batch_size: true"),
                "model_config.generation.max_batch_size: true is not a whole number",
            ),
            (in_generation("max_batch_size: 1.0"), "model_config.generation.max_batch_size: 1.0 is not a whole number"),
            (
                in_generation("max_batch_sizes: 1"),
                "model_config.generation.max_batch_sizes: unknown key; did you mean max_batch_size?",
            ),
            (
                in_generation("generate_kwargs: {temperature: .nan}"),
                "model_config.generation.generate_kwargs.temperature: NaN is not a finite number",
            ),
            (
                in_generation("generate_kwargs: {do_sample: on}"),
                'model_config.generation.generate_kwargs.do_sample: "on" is neither true nor false; '
                "write true or false, without quotes",
            ),
            (
                in_generation("generate_kwargs: {max_new_tokens: 4, min_new_tokens: 5}"),
                "model_config.generation.generate_kwargs: min_new_tokens (5) is greater than max_new_tokens (4)",
            ),
            (
                in_generation('prompt_format: "Hello"'),
                "model_config.generation.prompt_format: must be empty or contain {instruction}",
            ),
            (
                in_generation("prompt_format: [1]"),
                "model_config.generation.prompt_format: a list is neither a string nor a mapping",
            ),
            (
                in_generation("prompt_format: {system: '{instruction}', user: x, assistant: '{instruction}'}"),
                "model_config.generation.prompt_format.user: must contain {instruction}",
            ),
            (
                in_generation("stopping_sequences: [a, 1.5]"),
                "model_config.generation.stopping_sequences[1]: 1.5 is neither a string, nor a token id, "
                "nor a list of token ids",
            ),
            (
                in_generation("stopping_sequences: [[1, a]]"),
                'model_config.generation.stopping_sequences[0][1]: "a" is not a whole number',
            ),
            (
                in_generation("stopping_sequences: [-1]"),
                "model_config.generation.stopping_sequences[0]: -1 is not greater than or equal to 0",
            ),
            (
                in_package("parts: [{distribution: a, version: '1', file: a/0}]"),
                "model_config.initialization.python_package.parts: holds 1, at least 2 are needed",
            ),
            (
                in_package("distribution: a"),
                "model_config.initialization.python_package: needs version, or parts if the file is split over "
                "distributions",
            ),
            (
                with_section("scaling_config:\n"),
                "scaling_config: null is not a mapping; remove the key or give it a value",
            ),
            (
                with_section("scaling_config: {placement_strategy: PAK}\n"),
                "scaling_config.placement_strategy: \"PAK\" is not one of 'PACK', 'SPREAD', 'STRICT_PACK' or "
                "'STRICT_SPREAD'",
            ),
            (with_section("deployment: {}\n"), "deployment: unknown key; did you mean deployment_config?"),
            (
                with_section("deployment_config: {autoscaling_config: {min_replicas: 3}}\n"),
                "deployment_config.autoscaling_config: min_replicas (3) <= initial_replicas (3) <= max_replicas (1) "
                "does not hold",
            ),
            (
                with_section("deployment_config: {max_ongoing_requests: 1, max_concurrent_queries: 1}\n"),
                "deployment_config.max_concurrent_queries: is another name of max_ongoing_requests, which is given "
                "too; keep one",
            ),
            (
                with_section("deployment_config: {ray_actor_options: {resources: {GPU: 1}}}\n"),
                "deployment_config.ray_actor_options.resources: GPU is not a custom resource; write it as num_gpus",
            ),
            (
                "model_config: {model_id: foo/bar}\n",
                "model_config.initialization: is required",
            ),
            (
                "model_config: {model_id: foo/bar, initialization: {initializer: {}}}\n",
                "model_config.initialization.initializer.type: is required: one of SingleDevice, DeviceMap, DeepSpeed, "
                "LlamaCpp, Echo",
            ),
            (
                "model_config: {model_id: foo/bar, initialization: {initializer: {type: SingelDevice}}}\n",
                'model_config.initialization.initializer.type: "SingelDevice" is not one of the known initializers '
                "(SingleDevice, DeviceMap, DeepSpeed, LlamaCpp, Echo); did you mean SingleDevice?",
            ),
            (
                "model_config: {model_id: foo/bar, initialization: {initializer: {type: Echo, step: 1}}}\n",
                "model_config.initialization.initializer.step: unknown key; known to Echo: type, step_time_s, "
                "load_time_s",
            ),
            (
                "model_config: {model_id: foo/bar, initialization: {initializer: {type: Echo, step_time_s: a}}}\n",
                'model_config.initialization.initializer.step_time_s: "a" is not a number',
            ),
            (
                "model_config: {model_id: foo/bar, initialization: {initializer: {type: Echo}, pipeline: llamacpp}}\n",
                'model_config.initialization.pipeline: "llamacpp" contradicts the initializer Echo, '
                "which needs default",
            ),
            (
                with_section("scaling_config: {num_workers: 2}\n"),
                "scaling_config: num_workers is 2, but Echo runs one worker per replica; write num_workers: 1 and "
                "num_gpus_per_worker: 2, or use DeepSpeed",
            ),
            (
                with_section("  max_input_words: 8\n") + "  generation: {max_input_words: 9}\n",
                "model_config.max_input_words: 8 contradicts generation.max_input_words (9), its place of today; keep "
                "that one",
            ),
            (
                "model_config: {model_id: foo--bar, initialization: {initializer: {type: Echo}}}\n",
                'model_config.model_id: "foo--bar" contains "--" or "..", which a model id must not: '
                '"--" stands for "/" in names',
            ),
            (
                "model_config: {model_id: 7, initialization: {initializer: {type: Echo}}}\n",
                "model_config.model_id: 7 is not text; put it in quotes",
            ),
        ],
    )
    def test_one_mistake_gives_one_line(self, write: Write, folder: Path, text: str, problem: str) -> None:
        write("foo--bar.yaml", text)
        assert problems_of(folder) == [f"foo--bar.yaml: {problem}"]

    def test_a_single_problem_is_a_single_line(self, write: Write, folder: Path) -> None:
        write("foo--bar.yaml", in_generation("max_batch_size: 0"))
        with pytest.raises(RegistryError) as raised:
            load_registry(folder)
        assert str(raised.value).startswith("foo--bar.yaml: ")
        assert "\n" not in str(raised.value)

    def test_a_duplicate_key_is_reported_once_and_hides_no_other_problem(self, write: Write, folder: Path) -> None:
        write("foo--bar.yaml", in_generation("max_batch_size: 0\n    max_batch_size: 1\n    oops: 1"))
        duplicate, unknown = problems_of(folder)
        assert "max_batch_size: line 7: the key is given twice, first in line 6" in duplicate
        assert "oops: unknown key" in unknown

    def test_a_long_value_is_cut(self, write: Write, folder: Path) -> None:
        write("foo--bar.yaml", in_generation(f"max_batch_size: {'x' * 5_000}"))
        (problem,) = problems_of(folder)
        assert len(problem) < 200


class TestExtends:
    def test_the_chat_variant_is_the_instruct_variant_with_four_values_changed(self) -> None:
        entries = load_registry(ZOO).entries
        chat, instruct = entries["mosaicml/mpt-7b-chat"], entries["mosaicml/mpt-7b-instruct"]
        assert chat.deployment == instruct.deployment
        assert chat.scaling == instruct.scaling
        changed = {
            "model_id": chat.model.model_id != instruct.model.model_id,
            "bucket_uri": chat.model.initialization.s3_mirror_config != instruct.model.initialization.s3_mirror_config,
            "prompt_format": chat.model.generation.prompt_format != instruct.model.generation.prompt_format,
            "stops": chat.model.generation.stopping_sequences != instruct.model.generation.stopping_sequences,
        }
        assert all(changed.values())
        assert chat.model.initialization.initializer == instruct.model.initialization.initializer
        assert chat.model.generation.generate_kwargs == instruct.model.generation.generate_kwargs

    def test_a_base_is_found_in_the_same_folder_before_the_zoo(
        self, write: Write, folder: Path, tmp_path: Path
    ) -> None:
        zoo = tmp_path / "zoo"
        zoo.mkdir()
        base = ECHO.format(id="a/base") + "  generation: {max_batch_size: %d}\n"
        (zoo / "a--base.yaml").write_text(base % 2, encoding="utf-8")
        write("a--b.yaml", "extends: a--base.yaml\nmodel_config: {model_id: a/b}\n")
        assert load_registry(folder, zoo=zoo).entries["a/b"].model.generation.max_batch_size == 2
        write("a--base.yaml", base % 3)
        assert load_registry(folder, zoo=zoo).entries["a/b"].model.generation.max_batch_size == 3

    def test_a_base_of_the_zoo_is_no_model_of_the_folder(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", "extends: aviary--echo.yaml\nmodel_config: {model_id: a/b}\n")
        assert list(load_registry(folder).entries) == ["a/b"]

    def test_a_file_may_extend_the_shipped_one_of_its_own_name(self, write: Write, folder: Path) -> None:
        write(
            "aviary--echo.yaml",
            "extends: aviary--echo.yaml\nmodel_config: {model_id: aviary/echo, generation: {max_batch_size: 99}}\n",
        )
        entry = load_registry(folder).entries["aviary/echo"]
        assert entry.model.generation.max_batch_size == 99
        assert entry.deployment.max_queued_requests == 32

    def test_chains_merge_mappings_deeply_and_replace_lists_and_scalars(self, write: Write, folder: Path) -> None:
        write(
            "a--one.yaml",
            ECHO.format(id="a/one")
            + "  generation: {max_batch_size: 1, max_batch_tokens: 16, stopping_sequences: [x, y]}\n",
        )
        write(
            "a--two.yaml",
            "extends: a--one.yaml\nmodel_config: {model_id: a/two, generation: {max_batch_size: 2}}\n",
        )
        write(
            "a--three.yaml",
            "extends: a--two.yaml\nmodel_config: {model_id: a/three, generation: {stopping_sequences: [z]}}\n",
        )
        generation = load_registry(folder).entries["a/three"].model.generation
        assert (generation.max_batch_size, generation.max_batch_tokens) == (2, 16)
        assert generation.stopping_sequences == ["z"]

    def test_null_takes_an_optional_key_away(self, write: Write, folder: Path) -> None:
        write(
            "a--b.yaml",
            "extends: mosaicml--mpt-7b-instruct.yaml\n"
            "model_config: {model_id: a/b, initialization: {s3_mirror_config: null, runtime_env: ~}}\n",
        )
        initialization = load_registry(folder).entries["a/b"].model.initialization
        assert initialization.s3_mirror_config is None
        assert initialization.runtime_env is None

    def test_another_initializer_replaces_the_whole_one_and_the_same_is_merged(
        self, write: Write, folder: Path
    ) -> None:
        start = (
            "extends: mosaicml--mpt-7b-instruct.yaml\nmodel_config: {model_id: a/%s, initialization: {initializer: %s}}"
        )
        write("a--b.yaml", start % ("b", "{type: LlamaCpp, model_filename: x.gguf}"))
        write("a--c.yaml", start % ("c", "{dtype: float32}"))
        entries = load_registry(folder).entries
        assert entries["a/b"].model.initialization.initializer == LlamaCpp(type="LlamaCpp", model_filename="x.gguf")
        merged = entries["a/c"].model.initialization.initializer
        assert isinstance(merged, SingleDevice)
        assert merged.dtype == "float32"
        assert merged.torch_compile is not None

    def test_todays_name_replaces_the_old_name_of_a_base(self, write: Write, folder: Path) -> None:
        write(
            "a--b.yaml",
            "extends: mosaicml--mpt-7b-instruct.yaml\nmodel_config: {model_id: a/b}\n"
            "deployment_config: {autoscaling_config: {target_ongoing_requests: 7}}\n",
        )
        autoscaling = load_registry(folder).entries["a/b"].deployment.autoscaling_config
        assert autoscaling.target_ongoing_requests == 7

    def test_enabled_is_not_inherited(self, write: Write, folder: Path) -> None:
        write("a--base.yaml", "enabled: false\n" + ECHO.format(id="a/base"))
        write("a--b.yaml", "extends: a--base.yaml\nmodel_config: {model_id: a/b}\n")
        assert list(load_registry(folder).entries) == ["a/b"]

    def test_a_file_without_an_id_of_its_own_is_told_that_the_bases_would_be_a_duplicate(
        self, write: Write, folder: Path
    ) -> None:
        write("a--b.yaml", ECHO.format(id="a/b"))
        write("a--c.yaml", "extends: a--b.yaml\n")
        assert problems_of(folder) == [
            "a--c.yaml: model_config.model_id: is required: a file that extends another sets its own; "
            "a/b of a--b.yaml would be a duplicate id"
        ]

    def test_a_file_that_repeats_its_bases_id_is_a_duplicate(self, write: Write, folder: Path) -> None:
        write("a--b.yaml", ECHO.format(id="a/b"))
        write("a--b-more.yaml", "extends: a--b.yaml\nmodel_config: {model_id: a/b}\n")
        (problem,) = problems_of(folder)
        assert "a--b.yaml" in problem
        assert "a--b-more.yaml" in problem
        assert "already the id" in problem

    @pytest.mark.parametrize(
        "name",
        ["../a--b.yaml", "/etc/a--b.yaml", "sub/a--b.yaml", "a\\\\b.yaml", "a--b", "a--b.json", "[a]", "1", "", "~"],
    )
    def test_only_a_plain_file_name_can_be_extended(self, write: Write, folder: Path, name: str) -> None:
        write("a--c.yaml", f"extends: {name if name in ('[a]', '1', '~') else chr(34) + name + chr(34)}\n")
        (problem,) = problems_of(folder)
        assert problem.startswith("a--c.yaml: extends: ")
        assert "is not a plain file name" in problem

    def test_an_endless_file_name_is_refused(self, write: Write, folder: Path) -> None:
        write("a--c.yaml", f"extends: {'x' * 300}.yaml\n")
        (problem,) = problems_of(folder)
        assert "is not a plain file name" in problem

    def test_a_missing_base_names_where_it_was_looked_for_and_the_closest_name(
        self, write: Write, folder: Path
    ) -> None:
        write("a--c.yaml", "extends: mosaicml--mpt-7b-instructt.yaml\n")
        (problem,) = problems_of(folder)
        assert f"is neither in {folder} nor in {ZOO}" in problem
        assert "did you mean mosaicml--mpt-7b-instruct.yaml?" in problem

    def test_a_file_that_extends_itself_is_refused(self, write: Write, folder: Path) -> None:
        write("a--c.yaml", "extends: a--c.yaml\n")
        (problem,) = problems_of(folder)
        assert "a--c.yaml" in problem
        assert "is neither in" in problem

    def test_a_circle_is_refused_and_shown(self, write: Write, folder: Path) -> None:
        for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
            write(f"x--{name}.yaml", f"extends: x--{base}.yaml\nmodel_config: {{model_id: x/{name}}}\n")
        problems = problems_of(folder)
        assert len(problems) == 3
        assert problems[0].endswith("in a circle: x--a.yaml → x--b.yaml → x--c.yaml → x--a.yaml")

    def test_a_bad_value_of_a_base_is_traced_to_it(self, write: Write, folder: Path, tmp_path: Path) -> None:
        zoo = tmp_path / "zoo"
        zoo.mkdir()
        (zoo / "a--base.yaml").write_text(in_generation("max_batch_size: 0"), encoding="utf-8")
        write("a--b.yaml", "extends: a--base.yaml\nmodel_config: {model_id: a/b}\n")
        (problem,) = problems_of(folder, zoo)
        assert problem.startswith("a--b.yaml: model_config.generation.max_batch_size: 0 is not")
        assert problem.endswith(f"(inherited from {zoo / 'a--base.yaml'})")

    def test_an_unreadable_base_is_reported_once(self, write: Write, folder: Path) -> None:
        write("a--base.yaml", "a: [\n")
        write("a--b.yaml", "extends: a--base.yaml\nmodel_config: {model_id: a/b}\n")
        write("a--c.yaml", "extends: a--base.yaml\nmodel_config: {model_id: a/c}\n")
        (problem,) = problems_of(folder)
        assert problem.startswith("a--base.yaml: is not YAML: line 2")

    def test_merging_leaves_the_base_as_it_was(self, write: Write, folder: Path) -> None:
        write("a--base.yaml", ECHO.format(id="a/base") + "  generation: {generate_kwargs: {top_k: 1}}\n")
        write(
            "a--a.yaml",
            "extends: a--base.yaml\nmodel_config: {model_id: a/a, generation: {generate_kwargs: {top_k: 2}}}\n",
        )
        entries = load_registry(folder).entries
        assert entries["a/base"].model.generation.generate_kwargs.top_k == 1
        assert entries["a/a"].model.generation.generate_kwargs.top_k == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_file_is_reported(write: Write, folder: Path) -> None:
    write("a--b.yaml", ECHO.format(id="a/b")).chmod(0)
    (problem,) = problems_of(folder)
    assert problem == "a--b.yaml: cannot be read: Permission denied"


def test_initializers_of_every_kind_load(write: Write, folder: Path) -> None:
    start = "model_config: {model_id: a/%s, initialization: {initializer: %s}}\n"
    write("a--d.yaml", start % ("d", "{type: DeepSpeed, use_kernel: true}"))
    write("a--e.yaml", start % ("e", "{type: Echo, step_time_s: 1}"))
    write("a--m.yaml", start % ("m", "{type: DeviceMap, device_map: {model.embed: 0, lm_head: cpu}}"))
    entries = load_registry(folder).entries
    assert isinstance(entries["a/d"].model.initialization.initializer, DeepSpeed)
    assert entries["a/e"].model.initialization.initializer == Echo(type="Echo", step_time_s=1.0)
