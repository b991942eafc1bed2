"""A reverse proxy for one HTTP server that keeps a record, and misbehaves when it is told to.

It counts what it hands out of every object, cuts connections once an allowance of bytes is spent, and can answer
instead of the server. Tests of downloads put it between the real client and the real server.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE_BYTES = 16 << 10
HOP_HEADERS = frozenset(("connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"))


@dataclass(frozen=True)
class Exchange:
    """One request, and how many bytes of its answer were sent."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body_bytes: int = 0


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class RecordingProxy(ThreadingHTTPServer):
    """`allowance` is how many bytes of objects are still handed out; None is no limit."""

    daemon_threads = True

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http"
        self.upstream_port = upstream_port
        self.exchanges: list[Exchange] = []
        self.allowance: int | None = None
        self.instead: Callable[[Exchange], Answer | None] = lambda _exchange: None
        self.spent = threading.Event()
        """Set when a connection was cut because the allowance is spent."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def bytes_of(self, name: str) -> int:
        """Bytes handed out in answer to GET requests whose path ends with `name`."""
        return sum(one.body_bytes for one in self.exchanges if one.method == "GET" and one.path.endswith(name))

    def take(self, num_bytes: int) -> int:
        """How many of the bytes may be handed out."""
        with self.lock:
            if self.allowance is None:
                return num_bytes
            taken = min(num_bytes, self.allowance)
            self.allowance -= taken
            return taken

    def handle_error(self, *_arguments: Any) -> None:
        """A client that is killed, or a connection that is cut, is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RecordingProxy

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        exchange = Exchange(self.command, unquote(parts.path), parts.query, headers)
        instead = self.server.instead(exchange)
        sent = self._forward() if instead is None else self._send(instead.status, instead.headers, instead.body)
        with self.server.lock:
            self.server.exchanges.append(
                Exchange(exchange.method, exchange.path, exchange.query, exchange.headers, sent)
            )

    def _forward(self) -> int:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=30)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        content = answer.read()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        upstream.close()
        return self._send(answer.status, headers, content, length)

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> int:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return 0
        is_limited = "list-type" not in self.path
        sent = 0
        for start in range(0, len(body), PIECE_BYTES):
            piece = body[start : start + PIECE_BYTES]
            allowed = self.server.take(len(piece)) if is_limited else len(piece)
            self.wfile.write(piece[:allowed])
            sent += allowed
            if allowed < len(piece):
                self.server.spent.set()
                self.close_connection = True
                break
        return sent

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def recording_proxy(upstream_port: int, tls: ssl.SSLContext | None = None) -> Iterator[RecordingProxy]:
    """The proxy, serving until the block ends; over HTTPS with `tls`."""
    proxy = RecordingProxy(upstream_port)
    if tls is not None:
        proxy.socket = tls.wrap_socket(proxy.socket, server_side=True, do_handshake_on_connect=False)
        proxy.scheme = "https"
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join(10)
        proxy.server_close()
