"""A model that repeats its prompt byte by byte: everything real but the model.

It ships, and is chosen in YAML by `initializer: {type: Echo}`, so that the whole system can be tested, loaded and
broken without weights or torch. It uses its KV blocks as a real runner does: what it answers is read back from them, so
a block table gone wrong shows in the text. Sampling parameters do not change what it says; limits and stops work. Its
logprobs are those of a model that is half sure of what it predicts, and finds all other tokens equally likely.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Ids

from model_registry.contract import ChatPrompt, FaultKind, Prompt, RequestFaultError, TokenPrompt
from workers.engine.runner import Chunk, StepPlan
from workers.engine.sampler import RawLogprobs, SampledToken
from workers.engine.sequence import Sequence
from workers.engine.tokenizer import Decode, Piece

END_OF_PROMPT = 256
END_OF_SEQUENCE = 257
VOCAB_SIZE = 258
SPACE = ord(" ")
BLOCK_SIZE = 16
PREDICTED_LOGPROB = math.log(1 / 2)
OTHER_LOGPROB = math.log(1 / 2 / (VOCAB_SIZE - 1))
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
        if isinstance(prompt, ChatPrompt):
            text = "\n".join(message.content for message in prompt.messages)
        else:
            text = "".join(segment.text for segment in prompt.segments)
        return [*text.encode(), END_OF_PROMPT]

    def decode(self, token_ids: Ids[int]) -> str:
        return bytes(token_id for token_id in token_ids if token_id < END_OF_PROMPT).decode(errors="replace")

    def decode_showing(self, names: Ids[str]) -> Decode:
        return self.decode  # its special tokens stand in no text

    def piece(self, token_id: int) -> Piece:
        return _SPECIAL_PIECES.get(token_id) or Piece(bytes([token_id]))


class EchoRunner:
    """Stores tokens in its KV blocks, and predicts from them the prompt's next byte, then the end, then again."""

    def __init__(self, num_kv_blocks: int, step_time_s: float = 0.0) -> None:
        self._step_time_s = step_time_s
        self.resize(num_kv_blocks)

    def resize(self, num_kv_blocks: int) -> None:
        """Another memory, with nothing in it."""
        self._slots = [0] * (num_kv_blocks * BLOCK_SIZE)

    def run(self, plan: StepPlan) -> list[int]:
        """The next token of each chunk that wants logits."""
        if self._step_time_s:
            time.sleep(self._step_time_s)
        for chunk in plan.chunks:
            for position, token_id in enumerate(chunk.token_ids, start=chunk.start):
                self._slots[_slot(chunk, position)] = token_id
        return [self._next_token(chunk) for chunk in plan.chunks if chunk.wants_logits]

    def _next_token(self, chunk: Chunk) -> int:
        token_ids = [self._slots[_slot(chunk, position)] for position in range(chunk.end)]
        num_prompt_bytes = token_ids.index(END_OF_PROMPT)
        position = (len(token_ids) - num_prompt_bytes - 1) % (num_prompt_bytes + 1)
        return END_OF_SEQUENCE if position == num_prompt_bytes else token_ids[position]


class EchoSampler:
    """Takes the runner's prediction, but no end before `min_tokens`."""

    def sample(self, rows: list[int], sequences: list[Sequence]) -> list[SampledToken | Exception]:
        return [_sampled(predicted, sequence) for predicted, sequence in zip(rows, sequences, strict=True)]


def _sampled(predicted: int, sequence: Sequence) -> SampledToken:
    token_id = SPACE if predicted == END_OF_SEQUENCE and not sequence.may_end else predicted
    num_logprobs = sequence.request.sampling.num_logprobs
    if num_logprobs is None:
        return SampledToken(token_id)
    ranked = [predicted, *(other for other in range(VOCAB_SIZE) if other != predicted)][:num_logprobs]
    top = [(other, _logprob(other, predicted)) for other in ranked]
    return SampledToken(token_id, RawLogprobs(_logprob(token_id, predicted), top))


def _logprob(token_id: int, predicted: int) -> float:
    return PREDICTED_LOGPROB if token_id == predicted else OTHER_LOGPROB


def _slot(chunk: Chunk, position: int) -> int:
    return chunk.block_ids[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
