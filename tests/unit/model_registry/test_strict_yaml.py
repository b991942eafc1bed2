"""YAML is read as plain data of YAML 1.2, and everything else in it is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_registry.strict_yaml import MAX_DEPTH, MAX_FILE_BYTES, parse_yaml, read_yaml


def only_message(text: str) -> str:
    (refusal,) = parse_yaml(text).refusals
    return refusal.message


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("~", None),
        ("null", None),
        ("", None),
        ("1", 1),
        ("-7", -7),
        ("+3", 3),
        ("0", 0),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("0.1.2", "0.1.2"),
        ("2001-01-01", "2001-01-01"),
        ("=", "="),
        ('"42"', "42"),
        ("'true'", "true"),
        ('""', ""),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    document = parse_yaml(f"key: {scalar}\n")
    assert document.refusals == ()
    assert isinstance(document.data, dict)
    found = document.data["key"]
    assert found == value
    assert type(found) is type(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz_.", min_size=1), inner, max_size=4),
    max_leaves=15,
)


@given(JSON_VALUES)
def test_json_is_read_as_json_reads_it(value: Any) -> None:
    document = parse_yaml(json.dumps({"value": value}))
    assert document.data == {"value": value}
    assert document.refusals == ()


def test_block_strings_keep_their_lines() -> None:
    assert parse_yaml("a: |\n  one\n  two\n").data == {"a": "one\ntwo\n"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\n", "line 1: anchor &x"),
        ("a: {b: 1}\n<<: {c: 1}\n", "line 2: merge keys"),
        ("a: !!str 1\n", "line 1: tag"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: tag"),
        ("a: ! 1\n", "line 1: tag"),
        ("a: 1\n\na: 2\n", "line 3: the key is given twice, first in line 1"),
        ("1: a\n", "the key 1 is not text"),
        ("true: a\n", "the key true is not text"),
        ("~: a\n", "the key ~ is not text"),
        ("? [a]\n: 1\n", "the key a list or mapping is not text"),
        ("a: 1\n---\nb: 1\n", "line 2: a second document"),
        ("%TAG ! tag:example.com,2000:\n---\na: 1\n", "directives"),
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("---\n", "is empty"),
        ("a: b: c\n", "is not YAML: line 1, column 5"),
        ("a: [1\n", "is not YAML: line"),
        ("a: \x00\n", "is not YAML"),
        ("a: 99999999999999999999\n", "too large a number"),
        ("a: 1e999\n", "too large a number"),
    ],
)
def test_what_surprises_or_attacks_is_refused(text: str, message: str) -> None:
    assert message in only_message(text)


def test_half_a_surrogate_pair_is_refused_by_every_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'a: "\\ud800"\n'
    assert parse_yaml(text).refusals
    monkeypatch.setattr("model_registry.strict_yaml._Parser", __import__("yaml").SafeLoader)
    assert "surrogate" in only_message(text)


def test_billion_laughs_are_refused_without_being_told() -> None:
    lines = ["a0: &a0 [ha]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    document = parse_yaml("\n".join(lines))
    assert not document.is_complete
    assert len(document.refusals) == 10 + 9 * 9
    assert all("anchor" in refusal.message or "alias" in refusal.message for refusal in document.refusals)


@pytest.mark.parametrize("opening", ["[", "{a: ", "? "])
def test_a_deeply_nested_file_is_refused_early(opening: str) -> None:
    assert f"deeper than {MAX_DEPTH} levels" in only_message("a: " * 0 + opening * 2_000 + "1")


def test_the_deepest_allowed_nesting_is_read() -> None:
    document = parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert document.refusals == ()


def test_all_refusals_of_a_file_are_collected_with_their_paths() -> None:
    document = parse_yaml("a:\n  b: &x 1\n  c: [1, !t 2]\n  b: 3\n")
    assert [refusal.path for refusal in document.refusals] == [("a", "b"), ("a", "c", 1), ("a", "b")]


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: é\n".encode("latin-1"))
    (refusal,) = read_yaml(path).refusals
    assert refusal.message == "is not UTF-8: byte 0xe9 at offset 3"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path).data == {"a": 1}


def test_a_file_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (refusal,) = read_yaml(path).refusals
    assert f"larger than {MAX_FILE_BYTES} bytes" in refusal.message


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    messages = [read_yaml(tmp_path / name).refusals[0].message for name in ("folder.yaml", "loop.yaml", "none.yaml")]
    assert messages[0] == "is not a regular file"
    assert "symbolic links" in messages[1]
    assert "No such file" in messages[2]
