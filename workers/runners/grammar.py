"""Constraints on generated text by llguidance, for every vocabulary and runner.

Grammars are compiled once and copied for each sequence. A grammar that takes too long to compile or to follow ends its
own request: masks are made between the steps of all sequences. Knows tokens as bytes.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark, is_lark_syntax

from model_registry.contract import JSON_WHITESPACE, Constraint, ConstraintKind, FaultKind, RequestFaultError
from model_registry.tool_formats import MARKS
from workers.engine.constraint import TokenConstraint
from workers.engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_CACHED_GRAMMARS: Final = 64
MAX_MESSAGE_CHARS: Final = 300
LIMITS: Final = LLParserLimits(verbose_errors=False)
"""llguidance's own, which count its work in some places and not in others; hence the clocks below."""
MAX_COMPILE_S: Final = 2.0
"""Of processor time, for a grammar and its first mask; nearly all take milliseconds."""
MASKS_S: Final = 2.0
"""Of processor time, for all masks of a sequence together, besides `MASK_S` for each."""
MASK_S: Final = 0.02


UNSPELLABLE: Final = "it has no token for the byte"
_UNSPELLABLE: Final = re.compile(f"{UNSPELLABLE} 0x[0-9a-f]{{2}}")
_EXCERPT: Final = re.compile(r"\n\s*\d+ \|")


class GrammarCompiler:
    """`ConstraintCompiler` for one model's vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None
        self._vocabulary_lock = threading.Lock()
        self._matchers: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        """In their initial state, the one used last at the end."""
        self._matchers_lock = threading.Lock()

    def compile(self, constraint: Constraint) -> TokenConstraint:
        with self._matchers_lock:
            matcher = self._matchers.get(constraint)
        if matcher is None:
            # Not under the lock: a grammar that takes long is nobody else's concern.
            matcher = self._new_matcher(constraint)
        with self._matchers_lock:
            self._matchers[constraint] = matcher
            self._matchers.move_to_end(constraint)
            if len(self._matchers) > MAX_CACHED_GRAMMARS:
                self._matchers.popitem(last=False)
            return GrammarConstraint(matcher.deep_copy(), constraint.param, self._tokenizer.eos_token_ids)

    def _new_matcher(self, constraint: Constraint) -> LLMatcher:
        vocabulary = self._get_vocabulary(constraint)
        started_s = time.thread_time()
        try:
            matcher = LLMatcher(vocabulary, _grammar_of(constraint), log_level=0, limits=LIMITS)
        except ValueError as error:
            raise _refused(str(error), constraint.param) from error
        # The first mask may take seconds: on this thread, where no other sequence waits for it.
        matcher.deep_copy().compute_bitmask()
        if matcher.is_error():
            raise _refused(matcher.get_error(), constraint.param)
        if time.thread_time() - started_s > MAX_COMPILE_S:
            raise _too_slow(constraint.param)
        return matcher

    def _get_vocabulary(self, constraint: Constraint) -> LLTokenizer:
        if not self._tokenizer.eos_token_ids:
            raise _refused("this model has no end of sequence, so nothing could end such a text.", constraint.param)
        with self._vocabulary_lock:
            if self._vocabulary is None:
                # Takes up to a second for a large vocabulary, and most models are never asked for a constraint.
                self._vocabulary = LLTokenizer(
                    TokenizerWrapper(_Vocabulary(self._tokenizer)),
                    n_vocab=self._tokenizer.vocab_size,
                    eos_token=sorted(self._tokenizer.eos_token_ids),
                )
            return self._vocabulary


class GrammarConstraint:
    """One sequence's place in a grammar, and what following it has cost so far."""

    def __init__(self, matcher: LLMatcher, param: str, end_token_ids: frozenset[int]) -> None:
        self.end_token_ids = end_token_ids
        self._matcher = matcher
        self._param = param
        self._left_s = MASKS_S

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def mask(self) -> bytes:
        started_s = time.thread_time()
        mask = self._matcher.compute_bitmask()
        self._left_s += MASK_S - (time.thread_time() - started_s)
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error(), self._param)
        if self._left_s < 0:
            raise _too_slow(self._param)
        return mask

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise _refused(self._matcher.get_error(), self._param)


class _Vocabulary:
    """What `TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        pieces = [tokenizer.piece(token_id) for token_id in range(tokenizer.vocab_size)]
        self.eos_token_id = min(tokenizer.eos_token_ids)
        self.tokens = [piece.text for piece in pieces]
        is_hidden = [piece.is_special and piece.text.decode(errors="replace") not in MARKS for piece in pieces]
        self.special_token_ids = [token_id for token_id, hidden in enumerate(is_hidden) if hidden]
        self._ids = {piece.text: token_id for token_id, piece in enumerate(pieces) if not is_hidden[token_id]}
        self._max_piece_bytes = max(map(len, self._ids))

    def __call__(self, text: bytes | str) -> list[int]:
        """Text that must come next, in the tokens that the model is most at home with.

        Raises `ValueError`, of which llguidance makes an error of the matcher.
        """
        text = text.encode() if isinstance(text, str) else text
        token_ids = self._tokenizer.encode_text(text.decode(errors="replace"))
        if b"".join(self.tokens[token_id] for token_id in token_ids) == text:
            return token_ids
        return self._longest_pieces(text)  # some tokenizers begin every text with a space

    def _longest_pieces(self, text: bytes) -> list[int]:
        token_ids: list[int] = []
        while text:
            prefixes = (text[:size] for size in range(min(len(text), self._max_piece_bytes), 0, -1))
            piece = next((prefix for prefix in prefixes if prefix in self._ids), None)
            if piece is None:
                raise ValueError(f"{UNSPELLABLE} 0x{text[0]:02x}")
            token_ids.append(self._ids[piece])
            text = text[len(piece) :]
        return token_ids


def _grammar_of(constraint: Constraint) -> str:
    """In llguidance's words. Raises `ValueError`."""
    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(
                constraint.source, overrides={"whitespace_pattern": JSON_WHITESPACE, "lenient": False}
            )
        case ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.source)
        case ConstraintKind.GRAMMAR:
            return LLMatcher.grammar_from_lark(_lark_of(constraint.source))


def _lark_of(grammar: str) -> str:
    """A grammar in either notation as Lark. Raises `ValueError`."""
    # Blank lines say nothing, and cost the library's search for a rule the square of their number.
    grammar = "\n".join(line for line in grammar.splitlines() if line.strip())
    if not is_lark_syntax(grammar) and "::=" not in grammar:
        raise ValueError("a grammar has a rule 'start: …', as Lark writes it, or 'root ::= …', as GBNF does")
    try:
        return any_to_lark(grammar)
    except Exception as error:
        # An edge: the converter raises whatever comes, and bare exceptions too.
        raise ValueError(str(error) or type(error).__name__) from error


def _too_slow(param: str) -> RequestFaultError:
    return _refused("it takes too long to follow. Make it simpler: fewer alternatives, smaller repetitions.", param)


def _refused(reason: str, param: str) -> RequestFaultError:
    if unspellable := _UNSPELLABLE.search(reason):
        reason = f"a text must come that the model cannot write: {unspellable[0]}."
    elif reason.startswith("panic:"):
        logger.error("llguidance failed: %s", reason)
        return RequestFaultError(FaultKind.ENGINE_FAULT, "the grammar could not be followed")
    elif "NoExtensionBias" in reason:
        reason = "nothing that the model can write fits it."
    # Below its first lines llguidance shows the grammar, which a client may never have written.
    reason = " ".join(_EXCERPT.split(reason)[0].split())
    shown = reason if len(reason) <= MAX_MESSAGE_CHARS else f"{reason[:MAX_MESSAGE_CHARS]}…"
    return RequestFaultError(FaultKind.INVALID_REQUEST, f"Invalid '{param}': {shown}", param)
