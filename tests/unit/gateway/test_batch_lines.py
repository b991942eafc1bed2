"""A batch's input and output, line by line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import batch_lines
from gateway.batch_lines import EXPIRED, WrongInputError, answered, body_of, read_input, refused, unanswered
from gateway.errors import InvalidRequestError
from gateway.line_store import Line
from gateway.protocol.batches import BatchError

URL = "/v1/completions"
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "m", "prompt": "hi"}}
LINE = Line(number=1, custom_id="a", model="m", start=0, num_bytes=10)


def line(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields, ensure_ascii=False).encode() + b"\n"


def read(*lines: bytes) -> list[Line]:
    return read_input(lines, URL, is_model=lambda model: model == "m", max_line_bytes=1000)


def errors_of(*lines: bytes) -> tuple[BatchError, ...]:
    with pytest.raises(WrongInputError) as caught:
        read(*lines)
    return caught.value.errors


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{\n", "invalid_json_line", None),
        (b"\xff\n", "invalid_json_line", None),
        (b"[]\n", "invalid_request", None),
        (b'{"custom_id": "a"}\n', "invalid_request", None),
        (line(custom_id=1), "invalid_request", None),
        (line(colour="red"), "invalid_request", None),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(custom_id="a" * 513), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "mismatched_url", "url"),
        (line(body=[]), "missing_required_parameter", "body.model"),
        (line(body={"prompt": "hi"}), "missing_required_parameter", "body.model"),
        (line(body={"model": "other"}), "model_not_found", "body.model"),
        (line(body={"model": "m", "prompt": "x" * 1000}), "request_too_large", None),
    ],
)
def test_a_line_that_is_no_request_is_told_with_its_number(text: bytes, code: str, param: str | None) -> None:
    (error,) = errors_of(line(custom_id="before"), text)
    assert (error.line, error.code, error.param) == (2, code, param)


def test_all_wrong_lines_are_told_but_not_endlessly() -> None:
    assert [error.line for error in errors_of(b"{", line(), b"{", line())] == [1, 3, 4]
    assert len(errors_of(*[b"{"] * 1000)) == batch_lines.MAX_ERRORS


def test_an_input_without_requests_or_with_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [error.code for error in errors_of()] == ["empty_file"]
    assert [error.code for error in errors_of(b"\n", b"  \n")] == ["empty_file"]
    monkeypatch.setattr(batch_lines, "MAX_LINES", 2)
    assert len(read(line(custom_id="a"), b"\n", line(custom_id="b"))) == 2
    assert [error.code for error in errors_of(*(line(custom_id=name) for name in "abc"))] == ["too_many_requests"]


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=8), st.text(max_size=8), st.booleans()),
        min_size=1,
        unique_by=lambda one: one[0],
    )
)
def test_every_body_is_found_where_its_line_says(drawn: list[tuple[str, str, bool]]) -> None:
    bodies = [{"model": "m", "prompt": prompt} for _, prompt, _ in drawn]
    lines: list[bytes] = []
    for (name, _, has_blank), body in zip(drawn, bodies, strict=True):
        lines += [b" \n"] * has_blank + [json.dumps(GOOD | {"custom_id": name, "body": body}).encode() + b"\n"]
    content = b"".join(lines)
    found = read(*lines)
    assert [one.custom_id for one in found] == [name for name, _, _ in drawn]
    assert [json.loads(body_of(content[one.start : one.start + one.num_bytes])) for one in found] == bodies
    assert [lines[one.number - 1] for one in found] == [one for one in lines if one.strip()]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}, (5, 2, 3, 0)),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0, 0, 0)),
        (
            {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 1},
            },
            (5, 4, 3, 1),
        ),
    ],
)
def test_the_usage_of_every_endpoint_is_understood(usage: dict[str, Any], expected: tuple[int, ...]) -> None:
    found = answered(LINE, "req_1", json.dumps({"id": "x", "usage": usage}).encode()).usage
    assert (
        found.input_tokens,
        found.input_tokens_details.cached_tokens,
        found.output_tokens,
        found.output_tokens_details.reasoning_tokens,
    ) == expected
    assert found.total_tokens == expected[0] + expected[2]


def test_each_end_of_a_line_is_told_in_openais_form() -> None:
    body = {"id": "x", "usage": {"prompt_tokens": 1}}
    good = answered(LINE, "req_1", json.dumps(body).encode())
    assert good.is_success
    assert json.loads(good.text) == {
        "id": "batch_req_1",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1", "body": body},
        "error": None,
    }
    error = InvalidRequestError("wrong", param="prompt")
    bad = refused(LINE, "req_2", error)
    assert not bad.is_success
    assert json.loads(bad.text)["response"] == {"status_code": 400, "request_id": "req_2", "body": error.to_body()}
    never = json.loads(unanswered(LINE, "req_3", EXPIRED))
    assert (never["response"], never["error"]["code"]) == (None, "batch_expired")
    assert all(text.count(b"\n") == 1 for text in (good.text, bad.text))
