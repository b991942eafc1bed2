"""OpenAI's two shapes of logprobs, and that each token keeps its place in the text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.logprobs import TokenTrail, ToldToken, chat_logprobs, text_logprobs
from gateway.protocol.responses import encode
from model_registry.contract import Candidate, TokenLogprobs

LOGPROB = -0.5


def candidate(text: str | bytes, logprob: float = LOGPROB, *, is_special: bool = False) -> Candidate:
    data = text if isinstance(text, bytes) else text.encode()
    return Candidate(len(data), data, is_special, logprob)


def tokens(*texts: str | bytes) -> list[TokenLogprobs]:
    return [TokenLogprobs(candidate(text)) for text in texts]


def as_chat(made: Sequence[TokenLogprobs]) -> Any:
    trail = TokenTrail()
    trail.add(made)
    return json.loads(encode(chat_logprobs(trail.take()) or {}))


def as_text(made: Sequence[TokenLogprobs]) -> Any:
    trail = TokenTrail()
    trail.add(made)
    return json.loads(encode(text_logprobs(trail.take()) or {}))


def test_a_chat_has_an_object_per_token() -> None:
    made = TokenLogprobs(candidate(" the", -1.5), (candidate(" a", -0.25), candidate(" the", -1.5)))
    assert as_chat([made]) == {
        "content": [
            {
                "token": " the",
                "logprob": -1.5,
                "bytes": [32, 116, 104, 101],
                "top_logprobs": [
                    {"token": " a", "logprob": -0.25, "bytes": [32, 97]},
                    {"token": " the", "logprob": -1.5, "bytes": [32, 116, 104, 101]},
                ],
            }
        ],
        "refusal": None,
    }


def test_a_completion_has_a_list_per_thing_and_the_chosen_token_among_the_likeliest() -> None:
    first = TokenLogprobs(candidate(" the", -1.5), (candidate(" a", -0.25),))
    second = TokenLogprobs(candidate(" end", -0.125), (candidate(" end", -0.125),))
    assert as_text([first, second]) == {
        "tokens": [" the", " end"],
        "token_logprobs": [-1.5, -0.125],
        "top_logprobs": [{" a": -0.25, " the": -1.5}, {" end": -0.125}],
        "text_offset": [0, 4],
    }


def test_a_part_of_a_character_is_written_as_openai_writes_it() -> None:
    parts = tokens(b" \xf0\x9f", b"\x99\x82")
    content = as_chat(parts)["content"]
    assert [one["token"] for one in content] == [" \\xf0\\x9f", "\\x99\\x82"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == " 🙂"
    text = as_text(parts)
    assert text["tokens"] == ["bytes: \\xf0\\x9f", "bytes:\\x99\\x82"]
    assert list(text["top_logprobs"][0]) == ["bytes: \\xf0\\x9f"]


def test_a_special_token_has_a_name_but_no_bytes_and_no_place_in_the_text() -> None:
    special = TokenLogprobs(candidate("<|im_end|>", is_special=True))
    made = [*tokens("a"), special, *tokens("b")]
    assert [one["bytes"] for one in as_chat(made)["content"]] == [[97], None, [98]]
    assert as_chat(made)["content"][1]["token"] == "<|im_end|>"
    assert as_text(made)["text_offset"] == [0, 1, 1]


def test_what_cannot_be_is_as_unlikely_as_openai_says() -> None:
    made = [TokenLogprobs(candidate("a", -math.inf), (candidate("b", -1e30),))]
    assert as_chat(made)["content"][0]["logprob"] == -9999.0
    assert as_text(made)["top_logprobs"] == [{"b": -9999.0, "a": -9999.0}]


def test_of_two_tokens_with_one_text_the_likelier_is_told() -> None:
    made = TokenLogprobs(candidate("A", -2.0), (candidate("A", -1.0), candidate("B", -3.0)))
    text = as_text([made])
    assert (text["top_logprobs"], text["token_logprobs"]) == ([{"A": -1.0, "B": -3.0}], [-2.0])


def test_without_tokens_there_is_nothing() -> None:
    assert (chat_logprobs([]), text_logprobs([])) == (None, None)


@given(st.text(max_size=20), st.lists(st.integers(1, 4)), st.lists(st.booleans()))
def test_offsets_count_characters_however_the_bytes_are_cut_into_tokens_and_the_tokens_into_chunks(
    text: str, sizes: list[int], takes: list[bool]
) -> None:
    data = text.encode()
    trail = TokenTrail()
    told: list[ToldToken] = []
    sizes, takes = sizes + [1] * len(data), takes + [True] * len(data)
    start = 0
    for size, take in zip(sizes, takes, strict=False):
        piece = data[start : start + size]
        if piece:
            trail.add(tokens(piece))
        if take:
            told += trail.take()
        start += size
    told += trail.take()
    assert b"".join(one.logprobs.chosen.text for one in told) == data
    before = b""
    for one in told:
        assert one.text_offset == len(before.decode(errors="ignore"))
        before += one.logprobs.chosen.text
