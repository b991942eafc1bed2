"""How chunks are put on the wire as server-sent events. Pure: knows bytes, not connections.

Here is OpenAI's framing of chunks: `data: {json}`, an error object as the last event, else `[DONE]`. A reply whose
events have names brings its own.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar

import msgspec

from gateway.errors import ApiError
from gateway.protocol.responses import Chunk, encode

DONE: Final = b"data: [DONE]\n\n"
_LINE_BREAKS: Final = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
"""No line breaks in server-sent events, but in the eyes of clients that split text by Unicode's rules."""

ChunkT_contra = TypeVar("ChunkT_contra", contravariant=True)


def event(data: msgspec.Struct | dict[str, Any], name: str = "") -> bytes:
    """One event whose data is one line of JSON."""
    line = encode(data)
    for char, escape in _LINE_BREAKS:
        line = line.replace(char, escape)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + line + b"\n\n"


class Framing(Protocol[ChunkT_contra]):
    """How one kind of reply puts its chunks on the wire."""

    def encode(self, chunk: ChunkT_contra) -> bytes: ...

    def error(self, error: ApiError) -> bytes:
        """The end of a stream that failed: nobody may take it as whole."""

    def end(self) -> bytes:
        """What is sent after the last chunk."""


class ChunkEvents:
    """Events without names; after an error, one error event and no `[DONE]`."""

    def encode(self, chunk: Chunk) -> bytes:
        return event(chunk)

    def error(self, error: ApiError) -> bytes:
        return event(error.to_body())

    def end(self) -> bytes:
        return DONE


CHUNK_EVENTS: Final = ChunkEvents()
