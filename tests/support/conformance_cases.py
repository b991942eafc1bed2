"""What the conformance suite asks of the generation endpoints of one running server: two models, and the parameters.

The echo engine's every answer is known; SmolLM2 is for where the text matters. What must hold of replies is in
`conformance`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from openai.types import completion_create_params as text_params
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat import completion_create_params as chat_params

from tests.support.client_fields import client_fields
from tests.support.conformance import ChatShape, Endpoint, Fields, TextShape

ECHO = "tests/echo"
SHORT_ECHO = "tests/echo-short"
"""The same, whose embeddings may be cut."""
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODELS = (ECHO, SHORT_ECHO, SMOLLM2)
SAID = "hello naïve wörld 🙂"
"""What the echo engine is told, and so says: pieces of one byte, of which some are no whole characters."""
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": SAID}]

TEXT = Endpoint("/v1/completions", TextShape(), {"prompt": SAID, "max_tokens": 64})
CHAT = Endpoint("/v1/chat/completions", ChatShape(), {"messages": MESSAGES})
ENDPOINTS = (TEXT, CHAT)
TEXT_FIELDS = client_fields(text_params.CompletionCreateParams)
CHAT_FIELDS = client_fields(chat_params.CompletionCreateParams)

GENERATION: dict[str, Fields] = {
    "several choices": {"n": 3},
    "a seed": {"seed": 7},
    "a temperature": {"temperature": 0.7},
    "a nucleus": {"top_p": 0.5},
    "the likeliest": {"top_k": 2},
    "the likely": {"min_p": 0.1},
    "a limit": {"max_tokens": 6},
    "a least length": {"min_tokens": 4},
    "a stop": {"stop": "wör"},
    "several stops": {"stop": ["zzz", "🙂", "ld 🙂"]},
    "a stop token": {"stop_token_ids": [32]},
    "presence": {"presence_penalty": 0.5},
    "frequency": {"frequency_penalty": -0.5},
    "repetition": {"repetition_penalty": 1.3},
    "a bias": {"logit_bias": {"104": -5}},
    "no end": {"ignore_eos": True, "max_tokens": 40},
    "usage": {"stream_options": {"include_usage": True}},
    "no usage": {"stream_options": {"include_usage": False, "include_obfuscation": False}},
    "a session": {"user": "Ann", "prompt_cache_key": "terms"},
    "its format": {"use_prompt_format": True},
    "nulls": dict.fromkeys(("n", "seed", "temperature", "stop", "logit_bias", "stream_options", "max_tokens")),
    "labels": {"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "x"},
}
TEXT_PARAMETERS: dict[str, Fields] = {
    **GENERATION,
    "logprobs": {"logprobs": 0},
    "top logprobs": {"logprobs": 3},
    "several prompts": {"prompt": ["one", "zwei 🙂", ""]},
    "token ids": {"prompt": [104, 101, 240, 159, 153, 130]},
    "lists of token ids": {"prompt": [[104], [105, 33]]},
    "as many as are shown": {"n": 2, "best_of": 2},
}
NEEDS_TEXT = (("its format", "token ids"), ("its format", "lists of token ids"))
CHAT_PARAMETERS: dict[str, Fields] = {
    **GENERATION,
    "logprobs": {"logprobs": True},
    "top logprobs": {"logprobs": True, "top_logprobs": 3},
    "today's limit": {"max_completion_tokens": 5, "max_tokens": None},
    "a conversation": {
        "messages": [
            {"role": "developer", "content": "Say it."},
            {"role": "user", "content": [{"type": "text", "text": "first"}, {"type": "text", "text": "second"}]},
            {"role": "assistant", "content": "third", "refusal": None, "tool_calls": []},
            {"role": "user", "content": "fourth"},
        ]
    },
    "plain text": {"response_format": {"type": "text"}, "modalities": ["text"]},
    "no tools": {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
}
INTERACTING = (
    "several choices", "a seed", "a limit", "a least length", "a stop", "several stops", "a stop token", "a bias",
    "no end", "usage", "nulls", "logprobs", "top logprobs",
)  # fmt: skip
"""Those that change where a text ends, how many there are, or what is told of it: what else shapes it meets them."""


TOGETHER = {
    "sampling": ("a temperature", "a nucleus", "the likeliest", "the likely"),
    "penalties": ("presence", "frequency", "repetition", "a bias"),
}


def for_pairs(parameters: Mapping[str, Fields]) -> dict[str, Fields]:
    """With those as one that change nothing but how a token is chosen."""
    merged = {
        name: {field: value for one in ones for field, value in parameters[one].items()}
        for name, ones in TOGETHER.items()
    }
    in_groups = {one for ones in TOGETHER.values() for one in ones}
    return merged | {name: fields for name, fields in parameters.items() if name not in in_groups}


def as_client_call(fields: Fields, known: Collection[str]) -> dict[str, Any]:
    """What the client does not know goes into `extra_body`, as its users send it."""
    extra = {name: value for name, value in fields.items() if name not in known}
    return {name: value for name, value in fields.items() if name in known} | {"extra_body": extra}


def without_stream_options(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "stream_options"}
