"""Which tokens fill in the middle, and where the parts of the prompt stand."""

from __future__ import annotations

import pytest

from model_registry.contract import FaultKind, InfillPrompt, RequestFaultError
from workers.engine.echo import ByteTokenizer
from workers.engine.infill import NAMES, InfillTokens, encode_infill, find_infill_tokens


@pytest.mark.parametrize("names", NAMES)
def test_a_vocabulary_has_them_by_one_familys_names(names: tuple[str, str, str]) -> None:
    ids = {name: 300 + place for place, name in enumerate(names)}
    assert find_infill_tokens(ids.get) == InfillTokens(300, 301, 302)
    del ids[names[1]]
    assert find_infill_tokens(ids.get) is None


def test_each_part_stands_behind_its_token() -> None:
    prompt = InfillPrompt("ab", "c")
    encoded = encode_infill(prompt, InfillTokens(300, 301, 302), ByteTokenizer().encode_text)
    assert encoded == [300, *b"ab", 301, *b"c", 302]


def test_a_model_without_them_refuses_by_name() -> None:
    with pytest.raises(RequestFaultError, match="Invalid 'suffix'") as raised:
        ByteTokenizer().encode_prompt(InfillPrompt("ab", "c"))
    assert (raised.value.fault.kind, raised.value.fault.param) == (FaultKind.INVALID_REQUEST, "suffix")
