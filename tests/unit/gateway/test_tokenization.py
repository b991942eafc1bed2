"""Bodies of /v1/tokenize and /v1/detokenize: two forms of one, and what belongs to which."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import InvalidRequestError
from gateway.protocol.tokenization import DetokenizeRequest, TokenizeRequest

MESSAGES = [{"role": "user", "content": "hi"}]


def tokenize(**fields: Any) -> TokenizeRequest:
    return TokenizeRequest.parse(json.dumps({"model": "m", **fields}).encode(), max_choices=8)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": None, "messages": None}, "missing_required_parameter", "prompt"),
        ({"prompt": "a", "messages": MESSAGES}, "invalid_value", "messages"),
        ({"prompt": ["a"]}, "invalid_type", "prompt"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"messages": MESSAGES, "add_special_tokens": True}, "invalid_value", "add_special_tokens"),
        (
            {"prompt": "a", "use_prompt_format": True, "add_special_tokens": False},
            "invalid_value",
            "add_special_tokens",
        ),
        ({"prompt": "a", "add_generation_prompt": False}, "invalid_value", "add_generation_prompt"),
        ({"prompt": "a", "continue_final_message": True}, "invalid_value", "continue_final_message"),
        (
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "invalid_value",
            "continue_final_message",
        ),
        ({"messages": MESSAGES, "continue_final_message": True}, "invalid_value", "continue_final_message"),
        ({"messages": MESSAGES, "chat_template": "{{ x }}"}, "unsupported_parameter", "chat_template"),
        ({"prompt": "a", "temperature": 1}, "unknown_parameter", "temperature"),
        ({"prompt": "a", "return_token_strs": 1}, "invalid_type", "return_token_strs"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tokenize(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("fields", "opens_answer"),
    [
        ({}, True),
        ({"add_generation_prompt": True}, True),
        ({"add_generation_prompt": False}, False),
        ({"continue_final_message": True}, False),
    ],
)
def test_an_answer_is_opened_unless_the_request_says_otherwise(fields: dict[str, Any], opens_answer: bool) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "well"}]
    assert tokenize(messages=messages, **fields).opens_answer == opens_answer


def test_what_vllms_clients_say_of_a_conversation_by_default_is_taken() -> None:
    said = {"add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False}
    assert tokenize(messages=MESSAGES, **said, return_token_strs=False, tools=None).opens_answer


@pytest.mark.parametrize(
    ("tokens", "code", "param"),
    [
        ([-1], "integer_below_min_value", "tokens[0]"),
        ([1, "2"], "invalid_type", "tokens[1]"),
        ([[1]], "invalid_type", "tokens[0]"),
        ("1", "invalid_type", "tokens"),
    ],
)
def test_a_wrong_token_id_is_pointed_at(tokens: Any, code: str, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        DetokenizeRequest.parse(json.dumps({"model": "m", "tokens": tokens}).encode(), max_choices=8)
    assert (caught.value.code, caught.value.param) == (code, param)
