"""What the tokenizer alone answers: the tokens of a prompt, and the text of token ids.

Called on tokenizer threads, beside the running steps. Knows requests and the tokenizer's seam, no engine.
"""

from __future__ import annotations

from model_registry.contract import (
    FinishReason,
    GenerationRequest,
    SequenceOutput,
    Tokenize,
    Tokenized,
    TokenPrompt,
)
from workers.engine.tokenizer import Tokenizer, checked_token_ids


def tokenized(request: GenerationRequest, task: Tokenize, tokenizer: Tokenizer) -> SequenceOutput:
    """The prompt's tokens, exactly those that a generation would start from. Raises `RequestFaultError`."""
    token_ids = tuple(tokenizer.encode_prompt(request.prompt))
    names = tuple(map(tokenizer.name, token_ids)) if task.names_tokens else None
    return SequenceOutput(
        request_id=request.request_id, tokenized=Tokenized(token_ids, names), finish_reason=FinishReason.STOP
    )


def detokenized(request: GenerationRequest, tokenizer: Tokenizer) -> SequenceOutput:
    """The text of a prompt of token ids. Raises `RequestFaultError` when the vocabulary has no such token."""
    if not isinstance(request.prompt, TokenPrompt):
        raise TypeError(f"a {type(request.prompt).__name__} is text already")
    token_ids = checked_token_ids(request.prompt.token_ids, tokenizer.vocab_size)
    return SequenceOutput(
        request_id=request.request_id, text=tokenizer.detokenize(token_ids), finish_reason=FinishReason.STOP
    )
