"""What a connection may take, in bytes and in time, before a request of its has been understood.

uvicorn and its parser bound neither. What is wrong is answered as everywhere else, by a problem (RFC 9457); then the
connection ends.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stream_server.errors import (
    HeadersTooLarge,
    NotHttp,
    RequestTooSlow,
    ServerFull,
    StreamServerError,
    UrlTooLong,
)
from stream_server.http.deadlines import Deadlines
from stream_server.server.flow_control import SmallFlowControl
from stream_server.settings import Settings

LINGER_SECONDS = 1.0
"""How long a client that was refused may take to read why; closed at once, TCP may take the answer from him
(RFC 9112 section 9.6)."""

ABORT_FACTOR = 1.1
"""Of so many times `max_connections`, those beyond are cut off, and not answered."""

OPERATOR_PATHS = (b"/health", b"/ready", b"/metrics")
"""Paths that are answered however many connections there are."""


class RequestLimits:
    """The bounds of all connections of a server.

    Args:
        settings: The server's.
        loop: The event loop.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.pending_requests: Deadlines[LimitedHttpProtocol] = Deadlines(
            loop, settings.request_timeout, LimitedHttpProtocol.on_request_timeout
        )
        """Connections whose request has not come as a whole."""

        self.refused_connections: Deadlines[LimitedHttpProtocol] = Deadlines(
            loop, LINGER_SECONDS, LimitedHttpProtocol.abort
        )
        """Connections that have been refused, and not closed."""

    def close(self) -> None:
        """Forget all connections."""
        self.pending_requests.close()
        self.refused_connections.close()


def get_address(transport: asyncio.Transport, name: str) -> tuple[str, int | None] | None:
    """Return an address of a connection as ASGI has it: host and port, or a path without one.

    Args:
        transport: The connection.
        name: `sockname` or `peername`.
    """
    known = transport.get_extra_info(name)
    if isinstance(known, tuple):
        # IPv6 has two numbers more.
        return str(known[0]), int(known[1])
    return (known, None) if isinstance(known, str) and known else None


class LimitedHttpProtocol(HttpToolsProtocol):
    """A connection that speaks HTTP/1.1, within bounds."""

    is_limited = True
    """Whether there may be too many of them."""

    _limits: RequestLimits
    _refusal: StreamServerError | None = None
    _awaits_request = False
    _is_reading_head = False
    _head_bytes = 0
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, as uvicorn does.

        uvloop knows the addresses. uvicorn asks a socket, which is made for that, and takes ten times as long.
        """
        self.connections.add(self)
        self.transport = transport
        self.flow = SmallFlowControl(transport)
        self.server, peer = get_address(transport, "sockname"), get_address(transport, "peername")
        self.client = None if peer is None or peer[1] is None else (peer[0], peer[1])
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._limits = cast("RequestLimits", self.app_state["edge"])
        if self.is_limited and len(self.connections) > ABORT_FACTOR * self._limits.settings.max_connections:
            transport.abort()
            return
        self._start_request_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Be lost."""
        self._stop_request_timer()
        self._limits.refused_connections.stop(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the client was refused."""
        if self._refusal is not None:
            return
        if not self._awaits_request:
            self._start_request_timer()
        super().data_received(data)
        if self._is_reading_head and self._refusal is None:
            # The parser keeps a header to itself until it is whole.
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.settings.max_url_bytes + self._limits.settings.max_header_bytes:
                self._send_refusal(self._headers_too_large())

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_reading_head, self._head_bytes, self._header_bytes = True, 0, 0
        if not self._awaits_request:
            self._start_request_timer()

    def on_url(self, url: bytes) -> None:
        """Read a part of the URL."""
        super().on_url(url)
        most = self._limits.settings.max_url_bytes
        if len(self.url) > most:
            self._abort_parsing(UrlTooLong(f"The URL has more than {most} bytes (STREAM_SERVER_MAX_URL_BYTES)"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header, as uvicorn does, within bounds. Browsers send some fifteen."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers, settings = self.headers, self._limits.settings
        headers.append((name, value))
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > settings.max_header_bytes or len(headers) > settings.max_headers:
            self._abort_parsing(self._headers_too_large())

    def on_headers_complete(self) -> None:
        """Begin with the request, if there is room."""
        if (
            self.is_limited
            and len(self.connections) > self._limits.settings.max_connections
            and not self.url.startswith(OPERATOR_PATHS)
        ):
            self._abort_parsing(
                ServerFull("This server has as many connections as it may (STREAM_SERVER_MAX_CONNECTIONS)")
            )
        self._is_reading_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request has come as a whole."""
        self._stop_request_timer()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what can't be parsed, or must not be."""
        error, self._refusal = self._refusal or NotHttp(), None
        self._send_refusal(error)

    def on_request_timeout(self) -> None:
        """The time for a request is over."""
        self._awaits_request = False
        if self.parser is None or self.transport.is_closing():
            return
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if self._is_reading_head or (answering and cycle.more_body):
            seconds = self._limits.settings.request_timeout
            self._send_refusal(
                RequestTooSlow(f"The request has not come within {seconds:g} s (STREAM_SERVER_REQUEST_TIMEOUT)")
            )
        elif not answering:
            self.transport.close()

    def abort(self) -> None:
        """The time to read why one was refused is over."""
        self.transport.abort()

    def _start_request_timer(self) -> None:
        self._awaits_request = True
        self._limits.pending_requests.start(self)

    def _stop_request_timer(self) -> None:
        self._awaits_request = False
        self._limits.pending_requests.stop(self)

    def _headers_too_large(self) -> HeadersTooLarge:
        settings = self._limits.settings
        return HeadersTooLarge(
            f"The request has more than {settings.max_headers} headers (STREAM_SERVER_MAX_HEADERS), or more than"
            f" {settings.max_header_bytes} bytes of them (STREAM_SERVER_MAX_HEADER_BYTES)"
        )

    def _abort_parsing(self, error: StreamServerError) -> None:
        """Stop the parser; what it makes of that comes to `send_400_response`."""
        self._refusal = error
        raise error

    def _send_refusal(self, error: StreamServerError) -> None:
        """Answer what is wrong, and end the connection."""
        self._refusal = error
        self._stop_request_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._is_reading_head or cycle.response_started:
                # There is an answer under way, of which the client must not take this for a part.
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(encode_problem(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._limits.refused_connections.start(self)


def encode_problem(error: StreamServerError) -> bytes:
    """Return a problem as bytes on the wire, after which the connection ends."""
    body = json.dumps(error.problem_body()).encode()
    headers: dict[str, Any] = {
        "content-type": "application/problem+json",
        "content-length": len(body),
        "connection": "close",
    }
    if error.retry_after is not None:
        headers["retry-after"] = error.retry_after
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + head.encode() + b"\r\n" + body
