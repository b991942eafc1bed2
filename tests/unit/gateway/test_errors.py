"""The error tree: OpenAI's body, and headers that tell a client what to do."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.errors import from_fault, shortened
from model_registry.contract import Fault, FaultKind


def test_the_body_has_exactly_openais_four_fields() -> None:
    error = errors.UnsupportedParameterError("no", param="tools")
    assert error.to_body() == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "tools", "code": "unsupported_parameter"}
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.BadJsonError("x"), 400, "invalid_request_error", None),
        (errors.ModelNotFoundError("x"), 404, "invalid_request_error", "model_not_found"),
        (errors.UnknownUrlError("GET", "/x"), 404, "invalid_request_error", "unknown_url"),
        (errors.MethodNotAllowedError("GET", "/x", "POST"), 405, "invalid_request_error", "unknown_url"),
        (errors.BodyTooLargeError(5), 413, "invalid_request_error", "request_too_large"),
        (errors.QueueFullError("x", retry_after_s=1), 429, "service_unavailable_error", "server_is_overloaded"),
        (errors.ModelUnavailableError("x", retry_after_s=1), 503, "service_unavailable_error", "server_is_overloaded"),
        (errors.DrainingError(), 503, "service_unavailable_error", "server_is_overloaded"),
        (errors.ServerError(), 500, "server_error", None),
        (errors.WorkerLostError(), 500, "server_error", "worker_lost"),
        (errors.DeadlineError(5), 504, "server_error", "timeout"),
    ],
)
def test_status_type_and_code_are_openais(error: errors.ApiError, status: int, kind: str, code: str | None) -> None:
    assert (error.status, error.type, error.code) == (status, kind, code)


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"), [(0.2, "1", "1000"), (2.3, "3", "2300"), (900, "120", "120000")]
)
def test_the_wait_is_told_within_what_clients_obey(wait_s: float, seconds: str, milliseconds: str) -> None:
    headers = errors.QueueFullError("x", retry_after_s=wait_s).headers
    assert headers == {"retry-after": seconds, "retry-after-ms": milliseconds}


def test_a_draining_gateway_lets_go_of_the_connection() -> None:
    assert errors.DrainingError().headers["connection"] == "close"
    assert "retry-after" in errors.DrainingError().headers


@pytest.mark.parametrize("error", [errors.WorkerLostError(), errors.DeadlineError(5)])
def test_a_request_that_cost_a_worker_or_a_lifetime_is_not_to_be_sent_again(error: errors.ApiError) -> None:
    assert error.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize(
    ("kind", "status", "code", "param"),
    [
        (FaultKind.CONTEXT_LENGTH_EXCEEDED, 400, "context_length_exceeded", "prompt"),
        (FaultKind.INVALID_REQUEST, 400, "invalid_value", "stop"),
        (FaultKind.ENGINE_FAULT, 500, None, None),
        (FaultKind.WORKER_LOST, 500, "worker_lost", None),
    ],
)
def test_every_fault_of_a_worker_has_its_error(
    kind: FaultKind, status: int, code: str | None, param: str | None
) -> None:
    error = from_fault(Fault(kind=kind, message="m", param="stop"), prompt_param="prompt")
    assert (error.status, error.code, error.param) == (status, code, param)


def test_a_fault_of_the_prompt_names_the_field_that_held_it() -> None:
    fault = Fault(kind=FaultKind.INVALID_REQUEST, message="m", param="prompt")
    assert from_fault(fault, prompt_param="tokens").param == "tokens"


def test_details_of_an_engine_fault_stay_inside() -> None:
    error = from_fault(Fault(kind=FaultKind.ENGINE_FAULT, message="segfault at 0x7f"), prompt_param="prompt")
    assert "0x7f" not in error.message


def test_client_text_in_messages_is_short_and_printable() -> None:
    assert shortened("\x1b[2J" + "a" * 200) == "?[2J" + "a" * 96 + "…"


@pytest.mark.parametrize(
    ("param", "told"),
    [("prompt", "input"), ("messages", "input"), ("reasoning_effort", "reasoning.effort"), ("stop_token_ids", None)],
)
def test_a_workers_fault_names_fields_as_their_client_does(param: str, told: str | None) -> None:
    fault = Fault(kind=FaultKind.INVALID_REQUEST, message=f"Invalid '{param}': no.", param=param)
    error = from_fault(fault, prompt_param="input", params={"reasoning_effort": "reasoning.effort"})
    assert error.param == (told or param)
    assert error.message == f"Invalid '{told or param}': no."
