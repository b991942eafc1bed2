"""Bodies as they arrive: how long they may take, and which forms they may have."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import ApiError, BodyTimeoutError, BodyTooLargeError, MediaTypeError
from gateway.middleware import body_limit
from gateway.middleware.body_limit import FORM_BYTES, BodyLimitMiddleware

FORM = "multipart/form-data; boundary=x"
MAX_BYTES = 1000
MAX_FILE_BYTES = 100_000


async def read(path: str, media_type: str | None, chunks: Sequence[bytes], *, pause_s: float = 0.0) -> int:
    """How many bytes of such a body reach the application, which come in chunks with pauses."""
    num_bytes = 0
    waiting = iter(chunks)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_bytes
        more = True
        while more:
            message = await receive()
            num_bytes += len(message["body"])
            more = message["more_body"]

    async def receive() -> Message:
        await asyncio.sleep(pause_s)
        chunk = next(waiting, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    headers = [(b"transfer-encoding", b"chunked")] + ([(b"content-type", media_type.encode())] if media_type else [])
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    middleware = BodyLimitMiddleware(app, MAX_BYTES, timeout_s=0.1, uploads={"/v1/files": MAX_FILE_BYTES})
    await middleware(scope, receive, send)
    return num_bytes


@pytest.mark.parametrize(
    ("path", "media_type", "num_bytes", "error"),
    [
        ("/v1/chat", "application/json", MAX_BYTES, None),
        ("/v1/chat", "application/json", MAX_BYTES + 1, BodyTooLargeError),
        ("/v1/chat", FORM, 1, MediaTypeError),
        ("/v1/chat", None, 1, MediaTypeError),
        ("/v1/files", FORM, MAX_FILE_BYTES + FORM_BYTES, None),
        ("/v1/files", FORM, MAX_FILE_BYTES + FORM_BYTES + 1, BodyTooLargeError),
        ("/v1/files", "application/json", 1, MediaTypeError),
        ("/v1/files", "multipart/form-data", 1, MediaTypeError),
        ("/v1/files/", FORM, 1, MediaTypeError),
    ],
)
async def test_forms_are_for_uploads_which_may_be_larger(
    path: str, media_type: str | None, num_bytes: int, error: type[ApiError] | None
) -> None:
    if error is None:
        assert await read(path, media_type, [b"x" * num_bytes]) == num_bytes
    else:
        with pytest.raises(error):
            await read(path, media_type, [b"x" * num_bytes])


async def test_a_body_that_goes_on_arriving_may_take_longer_than_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_limit, "SLOWEST_BYTES_PER_S", 20_000)
    assert await read("/v1/files", FORM, [b"x" * 1000] * 10, pause_s=0.025) == 10_000
    with pytest.raises(BodyTimeoutError):
        await read("/v1/files", FORM, [b"x" * 100] * 10, pause_s=0.025)
