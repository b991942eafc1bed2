"""A model that repeats its prompt byte by byte: everything real but the model.

It ships, and is chosen in YAML by `initializer: {type: Echo}`, so that the whole system can be tested, loaded and
broken without weights or torch. It uses its KV blocks as a real runner does: what it answers is read back from them, so
a block table gone wrong shows in the text. Sampling parameters do not change what it says; limits and stops work, and a
constraint makes it say something else only where it must. Its
logprobs are those of a model that is half sure of what it predicts, and finds all other tokens equally likely.
"""

from __future__ import annotations

import math
import struct
import time
from collections import Counter
from collections.abc import Sequence as Ids

from model_registry.contract import ChatPrompt, FaultKind, InfillPrompt, Prompt, RequestFaultError, TokenPrompt
from workers.engine.embeddings import Passage
from workers.engine.infill import encode_infill
from workers.engine.runner import Chunk, StepPlan
from workers.engine.sampler import RawLogprobs, SampledToken
from workers.engine.sequence import Sequence
from workers.engine.tokenizer import Decode, Piece

END_OF_PROMPT = 256
END_OF_SEQUENCE = 257
VOCAB_SIZE = 258
SPACE = ord(" ")
CLOSING = b'"}],:truefalsn0'
"""Bytes that lead to the end of a JSON text soon."""
BLOCK_SIZE = 16
PREDICTED_LOGPROB = math.log(1 / 2)
OTHER_LOGPROB = math.log(1 / 2 / (VOCAB_SIZE - 1))
_BITS = tuple(1 << place for place in range(8))
_SPECIAL_PIECES = {
    END_OF_PROMPT: Piece(b"<end of prompt>", is_special=True),
    END_OF_SEQUENCE: Piece(b"<end of sequence>", is_special=True),
}


class ByteTokenizer:
    """One token per UTF-8 byte."""

    vocab_size = VOCAB_SIZE
    eos_token_ids = frozenset({END_OF_SEQUENCE})

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, TokenPrompt):
            if not all(0 <= token_id < VOCAB_SIZE for token_id in prompt.token_ids):
                raise RequestFaultError(
                    FaultKind.INVALID_REQUEST, f"Token ids must be below {VOCAB_SIZE}, the vocabulary's size.", "prompt"
                )
            return [*prompt.token_ids, END_OF_PROMPT]
        if isinstance(prompt, InfillPrompt):
            return encode_infill(prompt, None, self.encode_text)
        if isinstance(prompt, ChatPrompt):
            text = "\n".join(message.content for message in prompt.messages)
            is_open = prompt.opens_answer or prompt.continues_final_message
        else:
            text, is_open = "".join(segment.text for segment in prompt.segments), prompt.has_opening
        return [*text.encode(), END_OF_PROMPT] if is_open else [*text.encode()]

    def encode_text(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Ids[int]) -> str:
        return bytes(token_id for token_id in token_ids if token_id < END_OF_PROMPT).decode(errors="replace")

    def detokenize(self, token_ids: Ids[int]) -> str:
        return b"".join(self.piece(token_id).text for token_id in token_ids).decode(errors="replace")

    def decode_showing(self, names: Ids[str]) -> Decode:
        return self.decode  # its special tokens stand in no text

    def piece(self, token_id: int) -> Piece:
        return _SPECIAL_PIECES.get(token_id) or Piece(bytes([token_id]))

    def name(self, token_id: int) -> str:
        text = self.piece(token_id).text
        return text.decode() if text.isascii() else f"<0x{token_id:02X}>"


class EchoRunner:
    """Stores tokens in its KV blocks, and predicts from them the prompt's next byte, then the end, then again."""

    def __init__(self, num_kv_blocks: int, step_time_s: float = 0.0) -> None:
        self._step_time_s = step_time_s
        self.resize(num_kv_blocks)

    def resize(self, num_kv_blocks: int) -> None:
        """Another memory, with nothing in it."""
        self._slots = [0] * (num_kv_blocks * BLOCK_SIZE)

    def run(self, plan: StepPlan) -> list[int]:
        """What it predicts after each token whose logits are wanted."""
        if self._step_time_s:
            time.sleep(self._step_time_s)
        for chunk in plan.chunks:
            for position, token_id in enumerate(chunk.token_ids, start=chunk.start):
                self._slots[_slot(chunk, position)] = token_id
        return [
            self._next_token(chunk, end)
            for chunk in plan.chunks
            for end in range(chunk.end - chunk.num_logits + 1, chunk.end + 1)
        ]

    def _next_token(self, chunk: Chunk, end: int) -> int:
        token_ids = [self._slots[_slot(chunk, position)] for position in range(end)]
        if END_OF_PROMPT not in token_ids:
            return END_OF_PROMPT  # inside a prompt it expects nothing but its end
        num_prompt_bytes = token_ids.index(END_OF_PROMPT)
        position = (len(token_ids) - num_prompt_bytes - 1) % (num_prompt_bytes + 1)
        return END_OF_SEQUENCE if position == num_prompt_bytes else token_ids[position]


class EchoSampler:
    """Takes the runner's prediction where it may come, but no end before `min_tokens`."""

    def sample(self, rows: list[int], sequences: Ids[Sequence], at: Ids[int]) -> list[SampledToken | Exception]:
        return [_sampled(rows[row], sequence) for row, sequence in zip(at, sequences, strict=True)]

    def logprobs(self, rows: list[int], token_ids: Ids[int], num_logprobs: int) -> list[RawLogprobs]:
        pairs = zip(rows, token_ids, strict=True)
        return [_raw_logprobs(token_id, predicted, num_logprobs) for predicted, token_id in pairs]


class EchoEmbedder:
    """Tells how often each token is in a prompt."""

    num_dimensions = VOCAB_SIZE

    def __init__(self, *, normalizes: bool, can_be_cut: bool, step_time_s: float = 0.0) -> None:
        self.can_be_cut = can_be_cut
        self._normalizes = normalizes
        self._step_time_s = step_time_s

    def num_computed(self, lengths: Ids[int]) -> int:
        return sum(lengths)

    def embed(self, passages: Ids[Passage]) -> list[bytes]:
        if self._step_time_s:
            time.sleep(self._step_time_s)
        return [self._vector(passage) for passage in passages]

    def _vector(self, passage: Passage) -> bytes:
        counts = Counter(passage.token_ids)
        numbers = [float(counts[token_id]) for token_id in range(passage.num_dimensions)]
        length = math.hypot(*numbers) if self._normalizes else 1.0
        return struct.pack(f"<{len(numbers)}f", *(number / (length or 1.0) for number in numbers))


def _sampled(predicted: int, sequence: Sequence) -> SampledToken | RequestFaultError:
    token_id = SPACE if predicted == END_OF_SEQUENCE and not sequence.may_end else predicted
    if sequence.constraint is not None:
        try:
            token_id = _allowed(sequence.constraint.mask(), token_id, banned=sequence.banned_token_ids)
        except RequestFaultError as error:
            return error
    num_logprobs = sequence.request.sampling.num_logprobs
    return SampledToken(token_id, None if num_logprobs is None else _raw_logprobs(token_id, predicted, num_logprobs))


def _raw_logprobs(token_id: int, predicted: int, num_logprobs: int) -> RawLogprobs:
    ranked = [predicted, *(other for other in range(VOCAB_SIZE) if other != predicted)][:num_logprobs]
    top = [(other, _logprob(other, predicted)) for other in ranked]
    return RawLogprobs(_logprob(token_id, predicted), top)


def _allowed(mask: bytes, wanted: int, *, banned: frozenset[int]) -> int:
    """The wanted token if it may come, else the end, else what comes first in the order of `CLOSING` and of bytes.

    Of what is banned, only where nothing else may come.
    """
    preferred: list[int] = [wanted, END_OF_SEQUENCE, *CLOSING, *range(VOCAB_SIZE)]
    in_order = sorted(preferred, key=banned.__contains__) if banned else preferred
    return next(token_id for token_id in in_order if mask[token_id // 8] & _BITS[token_id % 8])


def _logprob(token_id: int, predicted: int) -> float:
    return PREDICTED_LOGPROB if token_id == predicted else OTHER_LOGPROB


def _slot(chunk: Chunk, position: int) -> int:
    return chunk.block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
