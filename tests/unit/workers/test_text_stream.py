"""From tokens to shown text: detokenizing, stops and hold-back together, with one token per byte."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from model_registry.contract import SamplingParams
from workers.engine.detokenizer import MAX_HELD_TOKENS, Detokenizer
from workers.engine.text_stream import TextStream


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode(errors="replace")


def stream_of(text: str | bytes, **sampling: object) -> tuple[list[str], bool]:
    """What each token made visible, the flush last unless a stop came, and whether one did."""
    stream = TextStream(decode, b"prompt", SamplingParams(**sampling))  # type: ignore[arg-type]
    shown = []
    for byte in text if isinstance(text, bytes) else text.encode():
        passed, stopped = stream.feed(byte)
        shown.append(passed)
        if stopped:
            return shown, True
    rest, stopped = stream.flush()
    return [*shown, rest], stopped


@given(st.text(max_size=50))
def test_any_text_comes_out_whole_and_in_whole_characters(text: str) -> None:
    shown, stopped = stream_of(text)
    assert "".join(shown) == text
    assert not stopped
    assert all("\ufffd" not in part for part in shown) or "\ufffd" in text


def test_a_character_is_shown_only_when_its_last_byte_came() -> None:
    shown, _ = stream_of("é🙂")
    assert [len(part) for part in shown] == [0, 1, 0, 0, 0, 1, 0]


def test_bytes_that_are_no_character_do_not_hold_the_stream_forever() -> None:
    detokenizer = Detokenizer(decode, b"")
    shown = "".join(detokenizer.feed((0xFF,)) for _ in range(MAX_HELD_TOKENS + 1))
    assert shown == "\ufffd" * (MAX_HELD_TOKENS + 1)


def test_tokens_without_text_hold_nothing_back_and_break_no_character() -> None:
    def without_special(token_ids: Sequence[int]) -> str:
        return decode([token_id for token_id in token_ids if token_id < 256])

    detokenizer = Detokenizer(without_special, b"")
    shown = "".join(detokenizer.feed((300,)) for _ in range(3 * MAX_HELD_TOKENS))
    shown += "".join(detokenizer.feed((byte,)) for byte in "🙂!".encode())
    assert shown == "🙂!"


def test_a_stop_completed_by_what_the_detokenizer_still_held_is_a_stop() -> None:
    shown, stopped = stream_of(b"ab\xc3", stop=("b\ufffd",))
    assert stopped
    assert "".join(shown) == "a"


def test_an_incomplete_character_at_the_end_shows_as_a_replacement() -> None:
    shown, _ = stream_of(b"ab" + "é".encode()[:1])
    assert "".join(shown) == "ab\ufffd"


def test_a_leading_space_that_a_tokenizer_drops_at_the_start_of_text_is_kept() -> None:
    def dropping(token_ids: Sequence[int]) -> str:
        return decode(token_ids).removeprefix(" ")

    detokenizer = Detokenizer(dropping, b"question")
    assert detokenizer.feed(b" answer") == " answer"


def test_a_stop_string_in_multi_byte_text_is_found_and_never_shown() -> None:
    shown, stopped = stream_of("größer größer Straße weiter", stop=("Straße",))
    assert stopped
    assert "".join(shown) == "größer größer "


def test_text_before_a_stop_token_is_kept_and_the_token_hidden() -> None:
    shown, stopped = stream_of("abcXdef", stop_token_ids=(ord("X"),))
    assert stopped
    assert "".join(shown) == "abc"


def test_a_stop_token_sequence_is_hidden_from_its_first_token_on() -> None:
    shown, stopped = stream_of("abXcabXY", stop_token_sequences=(tuple(b"XY"),))
    assert stopped
    assert "".join(shown) == "abXcab"


def test_the_beginning_of_a_token_sequence_is_shown_when_nothing_follows() -> None:
    shown, stopped = stream_of("abX", stop_token_sequences=(tuple(b"XY"),))
    assert not stopped
    assert "".join(shown) == "abX"


def test_a_string_stop_inside_held_tokens_is_found_at_the_end() -> None:
    shown, stopped = stream_of("abX", stop_token_sequences=(tuple(b"XY"),), stop=("bX",))
    assert stopped
    assert "".join(shown) == "a"


def test_no_stop_counts_before_min_tokens() -> None:
    shown, stopped = stream_of("XabXcd", stop=("X",), min_tokens=3)
    assert stopped
    assert "".join(shown) == "Xab"


def test_text_begins_with_the_mark_that_its_prompt_ends_with() -> None:
    for prompt, text in ((b"say <think>\n", "<think>hm"), (b"<think></think>", "hm"), (b"say", "hm")):
        stream = TextStream(decode, prompt, SamplingParams(repeats_opening="<think>"))
        shown = [stream.feed(byte)[0] for byte in b"hm"]
        assert "".join([*shown, stream.flush()[0]]) == text
        ended_at_once = TextStream(decode, prompt, SamplingParams(repeats_opening="<think>"))
        assert ended_at_once.flush() == (text.removesuffix("hm"), False)


def test_a_mark_of_the_prompt_completes_no_stop() -> None:
    stream = TextStream(decode, b"<think>", SamplingParams(repeats_opening="<think>", stop=("<think>",)))
    assert stream.feed(ord("a")) == ("<think>a", False)
