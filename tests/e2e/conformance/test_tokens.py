"""What a text or a conversation is in tokens: the way there and back, and the count that a reply tells of."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.support.conformance import Fields, error_of, one_by_one
from tests.support.conformance_cases import CHAT, ECHO, MESSAGES, SAID, SMOLLM2, TEXT

pytestmark = pytest.mark.timeout(600)  # the first start may have to fetch the model

MODELS = (ECHO, SMOLLM2)
TEXTS = {
    "a text": SAID,
    "nothing": "",
    "lines": "one\n\n  two\t",
    "what looks special": "<|im_end|>",
    "long": "word " * 99,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CONVERSATIONS: dict[str, Fields] = {
    "a message": {"messages": MESSAGES},
    "several": {"messages": [{"role": "developer", "content": "Say it."}, *MESSAGES]},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    },
    "tools": {"messages": MESSAGES, "tools": TOOLS},
    "calls": {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ],
        "tools": TOOLS,
    },
    "an open end": {
        "messages": [*MESSAGES, {"role": "assistant", "content": "It is"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
}


def tokenize(http: httpx.Client, model: str, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/tokenize", json={"model": model, **fields})
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    assert set(told) == {"count", "max_model_len", "tokens", "token_strs"}
    assert told["count"] == len(told["tokens"])
    return told


def detokenize(http: httpx.Client, model: str, tokens: list[int]) -> str:
    response = http.post("/v1/detokenize", json={"model": model, "tokens": tokens})
    assert response.status_code == 200, response.text
    text: str = response.json()["prompt"]
    return text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("model", MODELS)
def test_a_text_comes_back_from_its_tokens(http: httpx.Client, model: str, text: str) -> None:
    told = tokenize(http, model, prompt=text, add_special_tokens=False, return_token_strs=True)
    assert detokenize(http, model, told["tokens"]) == text
    assert len(told["token_strs"]) == told["count"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (model, text)
        for model in MODELS
        for text in TEXTS.values()
        if text or model == ECHO  # the other has no token to begin with, so there would be nothing to go on with
    ],
)
def test_a_text_counts_as_a_completion_says(http: httpx.Client, model: str, text: str) -> None:
    answered = TEXT.ask(http, model, {"prompt": text, "max_tokens": 1})
    assert answered.usage is not None
    assert tokenize(http, model, prompt=text)["count"] == answered.usage["prompt_tokens"]


@pytest.mark.parametrize("fields", one_by_one(CONVERSATIONS))
@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_counts_as_a_chat_says(http: httpx.Client, model: str, fields: Fields) -> None:
    answered = CHAT.ask(http, model, {**fields, "max_tokens": 1})
    assert answered.usage is not None
    assert tokenize(http, model, **fields)["count"] == answered.usage["prompt_tokens"]


def test_the_client_can_ask_for_it(client: openai.OpenAI) -> None:
    told: Any = client.post("/tokenize", body={"model": ECHO, "prompt": "hi"}, cast_to=object)
    assert (told["count"], told["tokens"][:2]) == (3, [104, 105])


@pytest.mark.parametrize(
    ("path", "fields", "status", "code", "param"),
    [
        ("/v1/tokenize", {"model": "no/such", "prompt": "a"}, 404, "model_not_found", None),
        ("/v1/tokenize", {}, 400, "missing_required_parameter", "prompt"),
        ("/v1/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "invalid_value", "messages"),
        ("/v1/tokenize", {"prompt": "a", "tools": TOOLS}, 400, "invalid_value", "tools"),
        ("/v1/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, 400, "invalid_value",
         "add_special_tokens"),
        ("/v1/tokenize", {"messages": [{"role": "robot"}]}, 400, "invalid_value", "messages[0].role"),
        ("/v1/tokenize", {"prompt": "a", "chat_template": "a"}, 400, "unsupported_parameter", "chat_template"),
        ("/v1/tokenize", {"prompt": "a", "stream": True}, 400, "unknown_parameter", "stream"),
        ("/v1/detokenize", {}, 400, "missing_required_parameter", "tokens"),
        ("/v1/detokenize", {"tokens": ["a"]}, 400, "invalid_type", "tokens[0]"),
        ("/v1/detokenize", {"tokens": [300]}, 400, "invalid_value", "tokens"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_code(
    http: httpx.Client, path: str, fields: Fields, status: int, code: str, param: str | None
) -> None:
    response = http.post(path, json={"model": ECHO, **fields})
    assert error_of(response) == (status, "invalid_request_error", code, param)
