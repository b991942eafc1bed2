"""Everything that can go wrong with a client's request, as the client sees it: OpenAI's error object.

Pure data: knows neither HTTP frameworks nor workers. Raised by every part of the gateway; the error middleware turns
it into a response, an open stream into an error event.

    ApiError
    ├── InvalidRequestError 400        the request cannot be served as it is
    │   ├── BadJsonError               its body is not the JSON we read
    │   ├── MissingParameterError      a required field is absent
    │   ├── UnknownParameterError      a field nobody knows
    │   ├── UnsupportedParameterError  a known field that this server does not honour
    │   ├── ContextLengthExceededError the prompt does not fit the model
    │   ├── RegistryRefusedError       the registry's files cannot be deployed as they are
    │   ├── KeyMissingError 401, KeyRejectedError 401, AdminClosedError 403
    │   ├── PreviousResponseNotFoundError  the response to go on with is not kept
    │   ├── ModelNotFoundError 404, ResponseNotFoundError 404, ItemNotFoundError 404
    │   ├── FileMissingError 404, BatchNotFoundError 404, FilesClosedError 404
    │   ├── UnknownUrlError 404, MethodNotAllowedError 405
    │   ├── BodyTimeoutError 408, BodyTooLargeError 413, MediaTypeError 415
    ├── OverloadedError                come back later; says when
    │   ├── QueueFullError 429
    │   ├── ModelUnavailableError 503
    │   ├── DrainingError 503
    │   └── SetAsideError 503          work that nobody waits for gave way; no client sees it
    └── ServerError 500                our fault; no details go out
        ├── WorkerLostError            the worker died under the request
        └── DeadlineError 504
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from model_registry.contract import Fault, FaultKind

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 120.0
"""OpenAI's client does not retry at all when told to wait longer."""


class ApiError(Exception):
    """Base of all errors a client may see; `message` is shown to it."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        return {}

    def to_body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body, and the data of an error event."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequestError(ApiError):
    """The request cannot be served as it is; asking again changes nothing."""

    status = 400
    type = "invalid_request_error"


class BadJsonError(InvalidRequestError):
    """The body is not JSON that we accept."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"We could not parse the JSON body of your request: {reason}. "
            "(HINT: The API expects a JSON object encoded in UTF-8; use your HTTP library's JSON option.)"
        )


class MissingParameterError(InvalidRequestError):
    """A required field is absent."""

    code = "missing_required_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"Missing required parameter: '{param}'.", param=param)


class UnknownParameterError(InvalidRequestError):
    """A field that neither OpenAI's API nor this server knows."""

    code = "unknown_parameter"

    def __init__(self, param: str) -> None:
        super().__init__(f"Unknown parameter: '{param}'.", param=param)


class UnsupportedParameterError(InvalidRequestError):
    """A field of the API that this server does not honour, and so refuses."""

    code = "unsupported_parameter"


class ContextLengthExceededError(InvalidRequestError):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class ModelNotFoundError(InvalidRequestError):
    """No model of that name is deployed."""

    status = 404
    code = "model_not_found"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"The model `{shortened(model_id)}` does not exist or you do not have access to it.")


class PreviousResponseNotFoundError(InvalidRequestError):
    """The response to go on with, or one before it, is not kept."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str, reason: str) -> None:
        super().__init__(
            f"Previous response with id '{shortened(response_id)}' not found. {reason}", param="previous_response_id"
        )


class ResponseNotFoundError(InvalidRequestError):
    """No response of that id is kept."""

    status = 404

    def __init__(self, response_id: str, reason: str) -> None:
        super().__init__(f"Response with id '{shortened(response_id)}' not found. {reason}")


class ItemNotFoundError(InvalidRequestError):
    """An item that the input refers to is not kept."""

    status = 404

    def __init__(self, item_id: str, reason: str) -> None:
        super().__init__(f"Item with id '{shortened(item_id)}' not found. {reason}", param="input")


class FilesClosedError(InvalidRequestError):
    """The operator has not given files and batches a place."""

    status = 404
    code = "files_closed"

    def __init__(self) -> None:
        super().__init__(
            "This server keeps no files and runs no batches: AVIARY_FILES is not set. "
            "Its operator may set it to the path of a folder."
        )


class FileMissingError(InvalidRequestError):
    """There is no file of that id."""

    status = 404

    def __init__(self, file_id: str, *, param: str = "id") -> None:
        super().__init__(f"No such File object: {shortened(file_id)}", param=param)


class BatchNotFoundError(InvalidRequestError):
    """There is no batch of that id."""

    status = 404

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No batch found with id '{shortened(batch_id)}'.", param="batch_id")


class RegistryRefusedError(InvalidRequestError):
    """The registry's files cannot be deployed as they are; what runs goes on as before."""

    code = "invalid_registry"


class KeyMissingError(InvalidRequestError):
    """The endpoint asks for a key, and none was sent."""

    status = 401

    def __init__(self) -> None:
        super().__init__(
            "You didn't provide an API key. Send it in an Authorization header: `Authorization: Bearer YOUR_KEY`."
        )


class KeyRejectedError(InvalidRequestError):
    """The key that was sent opens nothing."""

    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided. Check the key, and which server it is for.")


class AdminClosedError(InvalidRequestError):
    """The operator has not opened this endpoint."""

    status = 403
    code = "admin_closed"


class UnknownUrlError(InvalidRequestError):
    """No route has that path."""

    status = 404
    code = "unknown_url"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"Invalid URL ({method} {shortened(path)})")


class MethodNotAllowedError(InvalidRequestError):
    """The route does not take that method."""

    status = 405
    code = "unknown_url"

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__(f"Not allowed to {method} on {shortened(path)} (HINT: use {allow})")
        self._allow = allow

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": self._allow}


class _UnreadBodyError(InvalidRequestError):
    """The body was not read to its end, so the connection cannot be used again."""

    @property
    def headers(self) -> dict[str, str]:
        return {"connection": "close"}


class BodyTimeoutError(_UnreadBodyError):
    """The client took too long to send its body."""

    status = 408
    code = "timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The request body did not arrive within {timeout_s:g} seconds. Please send it again.")


class BodyTooLargeError(_UnreadBodyError):
    """The body is larger than the server reads."""

    status = 413
    code = "request_too_large"

    def __init__(self, max_body_bytes: int) -> None:
        super().__init__(f"The request body is larger than the limit of {max_body_bytes} bytes. Please shorten it.")


class MediaTypeError(_UnreadBodyError):
    """The body comes in a form that is not read."""

    status = 415
    code = "unsupported_media_type"


class OverloadedError(ApiError):
    """Cannot serve now; the client is told when to come back."""

    status = 503
    type = "service_unavailable_error"
    code = "server_is_overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = min(max(retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)

    @property
    def headers(self) -> dict[str, str]:
        return {
            "retry-after": str(math.ceil(self.retry_after_s)),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }


class QueueFullError(OverloadedError):
    """All workers of the model are busy and its queue is full."""

    status = 429


class ModelUnavailableError(OverloadedError):
    """The model is deployed, but no replica can serve it now."""


class DrainingError(OverloadedError):
    """The gateway is shutting down."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Please retry your request.", retry_after_s=MIN_RETRY_AFTER_S)

    @property
    def headers(self) -> dict[str, str]:
        return super().headers | {"connection": "close"}


class SetAsideError(OverloadedError):
    """Clients want what this work has. It may be done later; nobody waits for it, so nobody is told."""

    def __init__(self) -> None:
        super().__init__("This work has given way to what somebody waits for.", retry_after_s=MIN_RETRY_AFTER_S)


class ServerError(ApiError):
    """Something of ours failed; details are in the log under the request id only."""

    def __init__(self, message: str = "The server had an error while processing your request.") -> None:
        super().__init__(message)


class WorkerLostError(ServerError):
    """The worker died under the request, which is not replayed: it may be what killed the worker."""

    code = "worker_lost"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class DeadlineError(ServerError):
    """The request lived longer than a request may. Repeating minutes of work helps least when there is too much."""

    status = 504
    code = "timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The request did not finish within {timeout_s:g} seconds.")

    @property
    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


def from_fault(fault: Fault, *, prompt_param: str, params: Mapping[str, str] = MappingProxyType({})) -> ApiError:
    """What the client sees of a worker's fault, in the names of its request's fields.

    `prompt_param` is the field that held its prompt; `params` are others whose names are not the worker's.
    """
    match fault.kind:
        case FaultKind.CONTEXT_LENGTH_EXCEEDED:
            return ContextLengthExceededError(fault.message, param=prompt_param)
        case FaultKind.INVALID_REQUEST:
            of_prompt = fault.param in ("prompt", "messages")
            param = prompt_param if of_prompt else params.get(fault.param or "", fault.param)
            message = fault.message.replace(f"'{fault.param}'", f"'{param}'")
            return InvalidRequestError(message, param=param, code="invalid_value")
        case FaultKind.WORKER_LOST:
            return WorkerLostError()
        case _:
            return ServerError()


def shortened(text: str, limit: int = 100) -> str:
    """Client text as an error message may show it: printable and not long."""
    printable = "".join(char if char.isprintable() else "?" for char in text[:limit])
    return printable if len(text) <= limit else printable + "…"
