"""Model ids, slugs and file names lead back to each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_registry.naming import (
    MAX_MODEL_ID_LENGTH,
    MODEL_ID_PATTERN,
    check_model_id,
    file_name_of,
    is_file_name_of,
    model_id_of,
    slug_of,
)

PATTERN_IDS = st.from_regex(MODEL_ID_PATTERN, fullmatch=True).filter(
    lambda text: "--" not in text and ".." not in text and len(text) <= MAX_MODEL_ID_LENGTH
)


@given(PATTERN_IDS)
def test_an_id_survives_the_way_to_its_slug_and_back(model_id: str) -> None:
    assert model_id_of(slug_of(model_id)) == model_id


@given(PATTERN_IDS, PATTERN_IDS)
def test_two_ids_never_share_a_slug(one: str, other: str) -> None:
    assert (slug_of(one) == slug_of(other)) == (one == other)


@given(PATTERN_IDS)
def test_a_slug_has_no_slash_and_its_file_name_is_accepted(model_id: str) -> None:
    assert "/" not in slug_of(model_id)
    assert is_file_name_of(file_name_of(model_id), model_id)
    assert is_file_name_of(file_name_of(model_id, "two-gpus"), model_id)


@given(st.text(max_size=30))
def test_any_text_either_is_the_slug_of_one_id_or_is_refused(text: str) -> None:
    try:
        model_id = model_id_of(text)
    except ValueError:
        return
    if "/" not in text:
        assert slug_of(model_id) == text


@pytest.mark.parametrize(
    ("file_name", "model_id"),
    [
        ("mosaicml--mpt-7b-instruct.yaml", "mosaicml/mpt-7b-instruct"),
        ("HuggingFaceTB--SmolLM2-135M-Instruct.yaml", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("HuggingFaceTB--SmolLM2-135M-Instruct-cpu.yml", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("gpt2.yaml", "gpt2"),
    ],
)
def test_the_convention_accepts(file_name: str, model_id: str) -> None:
    assert is_file_name_of(file_name, model_id)


@pytest.mark.parametrize(
    ("file_name", "model_id"),
    [
        ("mpt-7b-instruct.yaml", "mosaicml/mpt-7b-instruct"),
        ("mosaicml-mpt-7b-instruct.yaml", "mosaicml/mpt-7b-instruct"),
        ("MosaicML--mpt-7b-instruct.yaml", "mosaicml/mpt-7b-instruct"),
        ("mosaicml--mpt-7b-instructor.yaml", "mosaicml/mpt-7b-instruct"),
        ("mosaicml--mpt-7b-instruct", "mosaicml/mpt-7b-instruct"),
        ("mosaicml--mpt-7b-instruct.json", "mosaicml/mpt-7b-instruct"),
    ],
)
def test_the_convention_refuses(file_name: str, model_id: str) -> None:
    assert not is_file_name_of(file_name, model_id)


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/", "/a", "a/b/c", "a--b", "a/b--c", "a-/b", "a/-b", "a/b-", "a/b.", "a..b", "../a", "a b", "é", "a\n"],
)
def test_what_is_not_a_model_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"model id|must not"):
        check_model_id(text)


def test_an_id_longer_than_the_limit_is_refused_with_its_length() -> None:
    with pytest.raises(ValueError, match="201 characters"):
        check_model_id("a" * (MAX_MODEL_ID_LENGTH + 1))
