"""The lines of a batch's files: what the input says, what is wrong with it, and what each request came to. Pure.

The input is checked as a whole before anything is run, as OpenAI does: whatever makes a line no request fails the
batch, with the numbers of the lines. What is wrong inside a request's body is that request's own error, later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from gateway.errors import ApiError, shortened
from gateway.line_store import Line, LineResult
from gateway.protocol.batches import BatchError, BatchUsage, InputDetails, OutputDetails
from gateway.protocol.responses import encode

MAX_LINES: Final = 50_000
MAX_ERRORS: Final = 100
"""Told of one batch."""
MAX_CUSTOM_ID: Final = 512
EXPIRED: Final = BatchError(
    code="batch_expired", message="This request could not be executed before the completion window expired."
)
CANCELLED: Final = BatchError(
    code="batch_cancelled", message="This request was not executed, since the batch was cancelled."
)


class _RequestLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As OpenAI has it."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    """The one thing of a request that a batch has to know."""

    model: str


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class _AnswerDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True):
    """By the names of all endpoints."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails = _PromptDetails()
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _PromptDetails = _PromptDetails()
    output_tokens_details: _AnswerDetails = _AnswerDetails()


class _Reply(msgspec.Struct, frozen=True):
    usage: _Usage = _Usage()


class _Response(msgspec.Struct, frozen=True, kw_only=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _OutputError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class _OutputLine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    custom_id: str
    response: _Response | None
    error: _OutputError | None


class WrongInputError(Exception):
    """The input cannot be run; all that is wrong, or the first part of it."""

    def __init__(self, errors: Iterable[BatchError]) -> None:
        super().__init__("the input is wrong")
        self.errors = tuple(errors)


_request = msgspec.json.Decoder(_RequestLine).decode
_body = msgspec.json.Decoder(_Body).decode
_reply = msgspec.json.Decoder(_Reply).decode


def read_input(
    lines: Iterable[bytes], endpoint: str, *, is_model: Callable[[str], bool], max_line_bytes: int
) -> list[Line]:
    """All requests of an input file; of a line that is too long, its beginning is enough. Raises `WrongInputError`."""
    found: list[Line] = []
    errors: list[BatchError] = []
    seen: set[str] = set()
    for number, start, text in _numbered(lines):
        if len(found) == MAX_LINES:
            raise WrongInputError([_too_many()])
        if len(text) > max_line_bytes:
            raise WrongInputError([*errors, _too_long(number, max_line_bytes)])
        try:
            line = _read_line(text, number, start, endpoint)
            _check(line, seen, is_model)
        except WrongInputError as error:
            errors += error.errors
            if len(errors) >= MAX_ERRORS:
                break
        else:
            found.append(line)
    if errors:
        raise WrongInputError(errors)
    if not found:
        raise WrongInputError([BatchError(code="empty_file", message="The input file has no requests.")])
    return found


def body_of(text: bytes) -> bytes:
    """The request's body, of a line that was read before."""
    return bytes(_request(text).body)


def answered(line: Line, request_id: str, body: bytes) -> LineResult:
    """The line was answered as a client would have been."""
    response = _Response(status_code=200, request_id=request_id, body=msgspec.Raw(body))
    return LineResult(
        number=line.number, is_success=True, text=_output(line, request_id, response), usage=_usage(_reply(body).usage)
    )


def refused(line: Line, request_id: str, error: ApiError) -> LineResult:
    """The line got the error that a client would have got."""
    body = msgspec.Raw(encode(error.to_body()))
    response = _Response(status_code=error.status, request_id=request_id, body=body)
    return LineResult(number=line.number, is_success=False, text=_output(line, request_id, response))


def unanswered(line: Line, request_id: str, error: BatchError) -> bytes:
    """Its line of the error file."""
    return _output(line, request_id, None, _OutputError(code=error.code, message=error.message))


def _output(line: Line, request_id: str, response: _Response | None, error: _OutputError | None = None) -> bytes:
    name = f"batch_{request_id}"
    return encode(_OutputLine(id=name, custom_id=line.custom_id, response=response, error=error)) + b"\n"


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and text of each line that is not blank."""
    start = 0
    for number, text in enumerate(lines, start=1):
        if text.strip():
            yield number, start, text
        start += len(text)


def _read_line(text: bytes, number: int, start: int, endpoint: str) -> Line:
    def wrong(code: str, message: str, param: str | None = None) -> WrongInputError:
        return WrongInputError([BatchError(code=code, message=message, param=param, line=number)])

    try:
        request = _request(text)
    except msgspec.ValidationError as error:
        raise wrong("invalid_request", f"This line is not a request of a batch: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise wrong("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not 0 < len(request.custom_id) <= MAX_CUSTOM_ID:
        message = f"The custom_id must have 1 to {MAX_CUSTOM_ID} characters; it has {len(request.custom_id)}."
        raise wrong("invalid_custom_id", message, "custom_id")
    if request.method != "POST":
        raise wrong(
            "invalid_method", f"Invalid method '{shortened(request.method)}'. Only POST is supported.", "method"
        )
    if request.url != endpoint:
        raise wrong(
            "mismatched_url",
            f"The URL '{shortened(request.url)}' does not match the endpoint of the batch, which is '{endpoint}'.",
            "url",
        )
    try:
        model = _body(request.body).model
    except msgspec.DecodeError:
        raise wrong("missing_required_parameter", "The body must be an object with a 'model'.", "body.model") from None
    return Line(number=number, custom_id=request.custom_id, model=model, start=start, num_bytes=len(text))


def _check(line: Line, seen: set[str], is_model: Callable[[str], bool]) -> None:
    """What a line means among others, and here. Raises `WrongInputError`."""
    if line.custom_id in seen:
        error = BatchError(
            code="duplicate_custom_id",
            message=f"The custom_id '{shortened(line.custom_id)}' is that of an earlier line. Each must be unique.",
            param="custom_id",
            line=line.number,
        )
        raise WrongInputError([error])
    seen.add(line.custom_id)
    if not is_model(line.model):
        error = BatchError(
            code="model_not_found",
            message=f"The model `{shortened(line.model)}` does not exist or you do not have access to it.",
            param="body.model",
            line=line.number,
        )
        raise WrongInputError([error])


def _too_long(number: int, max_bytes: int) -> BatchError:
    return BatchError(
        code="request_too_large", message=f"This line has more than the limit of {max_bytes} bytes.", line=number
    )


def _too_many() -> BatchError:
    return BatchError(
        code="too_many_requests",
        message=f"The input file has more than {MAX_LINES} requests. Make several batches of them.",
    )


def _usage(usage: _Usage) -> BatchUsage:
    num_input = usage.prompt_tokens or usage.input_tokens
    num_output = usage.completion_tokens or usage.output_tokens
    num_cached = usage.prompt_tokens_details.cached_tokens or usage.input_tokens_details.cached_tokens
    return BatchUsage(
        input_tokens=num_input,
        input_tokens_details=InputDetails(cached_tokens=num_cached),
        output_tokens=num_output,
        output_tokens_details=OutputDetails(reasoning_tokens=usage.output_tokens_details.reasoning_tokens),
        total_tokens=num_input + num_output,
    )
