"""Constraints: what the whole engine says under one, and what the compiler refuses."""

from __future__ import annotations

import contextlib
import json
import re
import time

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from gateway.constraints import grammar_of_texts
from model_registry.contract import (
    Constraint,
    ConstraintKind,
    FaultKind,
    FinishReason,
    GenerationRequest,
    RequestFaultError,
    SamplingParams,
    SequenceOutput,
    TextPrompt,
    TextSegment,
)
from workers.engine.constraint import TokenConstraint
from workers.engine.echo import BLOCK_SIZE, END_OF_SEQUENCE, ByteTokenizer, EchoRunner, EchoSampler
from workers.engine.engine import Engine, EngineLimits, EngineSizes
from workers.engine.paged_kv_cache import PagedKVCache
from workers.engine.tokenizer import Piece
from workers.runners import grammar
from workers.runners.grammar import GrammarCompiler

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def constraint(kind: ConstraintKind, source: str) -> Constraint:
    return Constraint(kind=kind, source=source, param="form")


def schema(value: object) -> Constraint:
    return constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def regex(source: str) -> Constraint:
    return constraint(ConstraintKind.REGEX, source)


def said(wanted: str, form: Constraint, **sampling: object) -> SequenceOutput:
    """What a model that wants to say this says under the constraint."""
    limits = EngineLimits(max_model_len=512, max_batch_size=8, max_batch_tokens=512)
    sizes = EngineSizes(lambda: PagedKVCache(64, BLOCK_SIZE), limits)
    engine = Engine(EchoRunner(64), EchoSampler(), ByteTokenizer(), GrammarCompiler(ByteTokenizer()), sizes)
    request = GenerationRequest(
        request_id="r",
        prompt=TextPrompt((TextSegment(wanted, trusted=True),)),
        sampling=SamplingParams(constraint=form, **sampling),  # type: ignore[arg-type]
    )
    engine.submit(engine.prepare(request))
    total = SequenceOutput(request_id="r")
    while engine.has_work:
        for output in engine.step():
            total = total.followed_by(output)
    return total


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (schema(PERSON), '{"name": "Ada", "age": 36}'),
        (schema(PERSON), '{\n  "name": "Ada",\n  "age": 36\n}'),
        (schema({"type": "object"}), '{"a":[1,{"b":null}]}'),
        (schema({}), "[1.5e3, true]"),
        (schema({"enum": ["small", "large"]}), '"large"'),
        (regex("[ab]+c"), "abbac"),
        (regex("gr(ü|u)ße?"), "grüße"),
        (constraint(ConstraintKind.GRAMMAR, 'start: "x" start | "y"'), "xxxy"),
        (constraint(ConstraintKind.GRAMMAR, 'root ::= "x" root | "y"'), "xxxy"),
    ],
)
def test_what_fits_is_said_as_it_is(form: Constraint, text: str) -> None:
    output = said(text, form)
    assert (output.text, output.finish_reason) == (text, FinishReason.STOP)


@pytest.mark.parametrize("wanted", ["", "not JSON", "{", '{"name": "Ada"', '{"age": 36}', "[1, 2]", '{"name": "\\'])
def test_what_does_not_fit_is_bent_until_it_does(wanted: str) -> None:
    output = said(wanted, schema(PERSON))
    jsonschema.validate(json.loads(output.text), PERSON)
    assert output.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(("wanted", "text"), [("abab", "abab"), ("abcabc", "abc"), ("bbbbbbbbb", "bbbb")])
def test_it_ends_where_nothing_can_follow_and_goes_on_where_something_can(wanted: str, text: str) -> None:
    assert said(wanted, regex("[ab]{1,4}c?")).text.startswith(text[:3])
    assert re.fullmatch("[ab]{1,4}c?", said(wanted, regex("[ab]{1,4}c?")).text)


def test_a_text_that_is_cut_short_is_told_so() -> None:
    output = said('{"name": "Ada", "age": 36}', schema(PERSON), max_tokens=12)
    assert (output.text, output.finish_reason) == ('{"name": "Ad', FinishReason.LENGTH)


def test_a_text_that_is_complete_with_its_last_token_is_not_cut_short() -> None:
    output = said("abc", regex("abc"), max_tokens=3)
    assert (output.text, output.finish_reason) == ("abc", FinishReason.STOP)


def test_min_tokens_puts_off_an_end_as_long_as_something_can_follow() -> None:
    assert said("ab", regex("[ab]+"), min_tokens=5, max_tokens=9).finish_reason is not None
    assert len(said("ab", regex("[ab]+"), min_tokens=5, max_tokens=9).text) >= 5
    complete = said("ab", regex("ab"), min_tokens=5, max_tokens=9)
    assert (complete.text, complete.finish_reason) == ("ab", FinishReason.STOP)


def test_ignore_eos_does_not_go_on_past_a_complete_text() -> None:
    output = said('{"name": "A", "age": 1}', schema(PERSON), ignore_eos=True)
    assert (output.text, output.finish_reason) == ('{"name": "A", "age": 1}', FinishReason.STOP)


def test_a_stop_still_ends_it() -> None:
    output = said('{"name": "Ada", "age": 36}', schema(PERSON), stop=(", ",))
    assert (output.text, output.finish_reason) == ('{"name": "Ada"', FinishReason.STOP)


@settings(max_examples=settings().max_examples // 2)  # each compiles several grammars
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8), min_size=1, max_size=4
    )
)
def test_of_texts_to_choose_among_each_can_be_said_and_nothing_else(texts: list[str]) -> None:
    form = constraint(ConstraintKind.GRAMMAR, grammar_of_texts(texts))
    for text in texts:
        assert _follows(GrammarCompiler(ByteTokenizer()).compile(form), text)
    assert not _follows(GrammarCompiler(ByteTokenizer()).compile(form), "".join(texts) + "!")


def _follows(place: TokenConstraint, text: str) -> bool:
    """Whether the text may be said and may end there."""
    for token_id in text.encode():
        if not _may_come(place, token_id):
            return False
        place.accept(token_id)
    return _may_come(place, END_OF_SEQUENCE)


def _may_come(place: TokenConstraint, token_id: int) -> bool:
    return bool(place.mask()[token_id // 8] >> (token_id % 8) & 1)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (schema({"type": "frob"}), "Invalid type: frob"),
        (schema({"not": {"type": "string"}}), "not"),
        (schema({"type": "string", "pattern": "("}), "unclosed group"),
        (schema({"$ref": "http://127.0.0.1:1/schema"}), "Resource 'http://127.0.0.1:1/schema'"),
        (schema({"not": {}, "x-guidance": {"lenient": True}}), "not"),
        (constraint(ConstraintKind.JSON_SCHEMA, "{"), "EOF while parsing an object"),
        (regex("(a|b"), "unclosed group"),
        (constraint(ConstraintKind.GRAMMAR, "start: foo"), "unknown name"),
        (constraint(ConstraintKind.GRAMMAR, "root ::= foo"), "Rule 'foo' not found"),
        (constraint(ConstraintKind.GRAMMAR, "a: b"), "'root ::= …', as GBNF"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(form: Constraint, message: str) -> None:
    with pytest.raises(RequestFaultError, match=re.escape(message)) as raised:
        GrammarCompiler(ByteTokenizer()).compile(form)
    assert raised.value.fault.kind is FaultKind.INVALID_REQUEST
    assert raised.value.fault.param == "form"
    assert "\n" not in raised.value.fault.message
    assert len(raised.value.fault.message) < 400


def test_a_grammar_that_takes_too_much_while_it_is_followed_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(step_max_items=40, verbose_errors=False))
    output = said("x" * 40, constraint(ConstraintKind.GRAMMAR, 'start: "x" start | start "x" start | "x"'))
    assert output.fault is not None
    assert output.fault.kind is FaultKind.INVALID_REQUEST
    assert output.fault.param == "form"


def test_a_grammar_is_compiled_once_and_each_sequence_has_its_own_place_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    own = grammar._grammar_of

    def counted(form: Constraint) -> str:
        compiled.append(form.source)
        return own(form)

    monkeypatch.setattr(grammar, "_grammar_of", counted)
    compiler = GrammarCompiler(ByteTokenizer())
    first, second = compiler.compile(regex("ab")), compiler.compile(regex("ab"))
    first.accept(ord("a"))
    assert _may_come(first, ord("b"))
    assert _may_come(second, ord("a"))
    for number in range(grammar.MAX_CACHED_GRAMMARS):
        compiler.compile(regex(f"{number}"))
    compiler.compile(regex("ab"))
    assert compiled.count("ab") == 2
    assert len(compiler._matchers) == grammar.MAX_CACHED_GRAMMARS


class OtherTokenizer(ByteTokenizer):
    """A vocabulary of two-byte tokens and bytes; what it makes of a text begins with a space, as some tokenizers do."""

    vocab_size = 260
    eos_token_ids = frozenset({257})
    missing = b""

    def piece(self, token_id: int) -> Piece:
        pieces = {256: Piece(b"[TOOL_CALLS]", is_special=True), 258: Piece(b"ab"), 259: Piece(b"bc")}
        if token_id < 256 and bytes([token_id]) in self.missing:
            return Piece(b"<unused>", is_special=True)
        return pieces.get(token_id) or super().piece(token_id)

    def encode_text(self, text: str) -> list[int]:
        return [ord(" "), *text.encode()]


def test_a_text_that_must_come_is_split_into_the_longest_tokens_where_the_tokenizer_cannot_split_it() -> None:
    place = GrammarCompiler(OtherTokenizer()).compile(regex("abc[de]"))
    assert [token_id for token_id in range(260) if _may_come(place, token_id)] == [258]
    place.accept(258)
    assert [token_id for token_id in range(260) if _may_come(place, token_id)] == [ord("c")]


def test_a_text_that_the_vocabulary_cannot_spell_is_refused() -> None:
    tokenizer = OtherTokenizer()
    tokenizer.missing = b"cz"
    with pytest.raises(RequestFaultError, match="no token for the byte 0x7a") as raised:
        GrammarCompiler(tokenizer).compile(regex("abz[de]")).mask()
    assert "panic" not in raised.value.fault.message


def test_special_tokens_are_no_text() -> None:
    place = GrammarCompiler(ByteTokenizer()).compile(regex("[<>a-z ]+"))
    assert _may_come(place, ord("<"))
    assert not _may_come(place, 256)
    assert not _may_come(place, END_OF_SEQUENCE)


def test_the_marks_of_tool_calls_are_text_also_where_a_vocabulary_has_them_as_special_tokens() -> None:
    place = GrammarCompiler(OtherTokenizer()).compile(regex(r"\[TOOL_CALLS\]abc"))
    assert [token_id for token_id in range(260) if _may_come(place, token_id)] == [256]
    place.accept(256)
    assert [token_id for token_id in range(260) if _may_come(place, token_id)] == [258]


@pytest.mark.parametrize("grammar", ["\n" * 100_000 + "x", " \n" * 60_000 + 'start: "a"', "start\n" * 20_000])
def test_blank_lines_cost_a_grammar_nothing(grammar: str) -> None:
    started = time.monotonic()
    with contextlib.suppress(RequestFaultError):
        GrammarCompiler(ByteTokenizer()).compile(constraint(ConstraintKind.GRAMMAR, grammar))
    assert time.monotonic() - started < 1


def test_an_error_does_not_show_the_grammar() -> None:
    form = constraint(ConstraintKind.GRAMMAR, 'start: "a" rest\nrest: %json {"type": "frob"}\nother: "secret"')
    with pytest.raises(RequestFaultError, match="frob") as raised:
        GrammarCompiler(ByteTokenizer()).compile(form)
    assert "|" not in raised.value.fault.message


def test_ignore_eos_and_min_tokens_hold_as_long_as_something_may_follow() -> None:
    output = said("", regex("a*"), ignore_eos=True, min_tokens=5, max_tokens=8)
    assert (output.text, output.finish_reason) == ("a" * 8, FinishReason.LENGTH)


def test_a_vocabulary_without_an_end_takes_no_constraint() -> None:
    tokenizer = OtherTokenizer()
    tokenizer.eos_token_ids = frozenset()
    with pytest.raises(RequestFaultError, match="no end of sequence"):
        GrammarCompiler(tokenizer).compile(regex("a"))


def test_a_grammar_that_takes_long_to_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_COMPILE_S", 0.0)
    with pytest.raises(RequestFaultError, match="takes too long to follow"):
        GrammarCompiler(ByteTokenizer()).compile(regex("(a{30}){30}"))


def test_a_sequence_that_takes_long_to_follow_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MASKS_S", 0.0)
    monkeypatch.setattr(grammar, "MASK_S", 0.0)
    output = said("aaaa", regex("a*"))
    assert output.fault is not None
    assert "takes too long to follow" in output.fault.message
