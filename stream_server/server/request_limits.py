"""Limits of a connection, in bytes and in time, that apply before a request has been parsed.

uvicorn and its parser limit neither. Errors are answered as everywhere else, by a problem (RFC 9457); then the
connection ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from stream_server.auth.rate_limits import RETRY_SECONDS
from stream_server.errors import (
    BadRequest,
    HeadersTooLarge,
    NotHttp,
    RequestTooLarge,
    RequestTooSlow,
    ServerFull,
    StreamServerError,
    TooManyStreams,
    UrlTooLong,
)
from stream_server.http.deadlines import SharedTimeouts
from stream_server.server.address_slots import AddressSlots
from stream_server.server.flow_control import SmallFlowControl
from stream_server.server.parse_turns import ParseTurns
from stream_server.settings import Settings

LINGER_SECONDS = 1.0
"""How long a refused client has to read the answer. If the connection is closed while the client still sends, the
TCP stack may discard the answer (RFC 9112 section 9.6)."""

MAX_DISCARDED_BYTES = 2**20
"""Bytes that are read and discarded after a refusal: many clients read an answer only once they have sent all."""

ABORT_FACTOR = 1.1
"""Connections beyond this multiple of `max_connections` are aborted without an answer."""

MAX_CHUNKS = 10_000
"""Chunks of a body. Each takes some microseconds, however short it is."""

MAX_PIPELINED_REQUESTS = 100
"""Requests that may wait on a connection for the response to an earlier one. Each takes about a kilobyte."""

OPERATOR_PATHS = (b"/health", b"/ready", b"/metrics")
"""Paths that are answered however many connections there are."""


class RequestLimits:
    """The limits of one server, and the timers of all its connections."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.pending_requests: SharedTimeouts[LimitedHttpProtocol] = SharedTimeouts(
            loop, settings.request_timeout, LimitedHttpProtocol.on_request_timeout
        )
        """Connections that have not received a whole request."""

        self.refused_connections: SharedTimeouts[LimitedHttpProtocol] = SharedTimeouts(
            loop, LINGER_SECONDS, LimitedHttpProtocol.abort
        )
        """Connections that were answered with a refusal and are still open."""

        self.parse_turns = ParseTurns(loop)
        self.address_slots = AddressSlots(settings.max_connections_per_address, settings.trusted_proxies)

    def close(self) -> None:
        """Stop the timers."""
        self.pending_requests.close()
        self.refused_connections.close()


def get_address(transport: asyncio.Transport, name: str) -> tuple[str, int | None] | None:
    """Return an address of a connection as in an ASGI scope: host and port, or the path of a Unix socket and `None`.

    Args:
        transport: The connection.
        name: `sockname` or `peername`.
    """
    address = transport.get_extra_info(name)
    if isinstance(address, tuple):
        # An IPv6 address has two more items: flow and scope.
        return str(address[0]), int(address[1])
    return (address, None) if isinstance(address, str) and address else None


class _ConnectionLogger(logging.Logger):
    """uvicorn's logger of connections, without its warnings: each is about a fault of a client."""

    @override
    def warning(self, *args: Any, **options: Any) -> None:
        self.debug(*args, **options)


connection_log = _ConnectionLogger("uvicorn.error", logging.INFO)
connection_log.parent = logging.getLogger("uvicorn.error")


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, with limits."""

    is_limited = True
    """Whether `max_connections` applies."""

    _limits: RequestLimits
    _refusal: StreamServerError | None = None
    """Why the connection ends. Nothing more is read from it."""

    _discarded_bytes = 0
    """Bytes received since the refusal."""

    release_address: Callable[[], None] | None = None
    """Stops to count the connection for the address of the client."""

    _has_too_many_connections = False
    """Whether the address of the client had too many connections before this one."""

    _awaits_request = False
    """Whether the request timer runs."""

    _is_reading_head = False
    _is_reading_trailers = False
    """Whether the head of a chunk came last. Trailers follow the last chunk, which has no bytes."""

    _head_bytes = 0
    """Bytes received since the request, or its last chunk, began, as long as its head is incomplete."""

    _header_bytes = 0
    """Bytes of the complete headers and trailers of the request."""

    _trailer_count = 0
    _chunk_count = 0

    _active_cycle: RequestResponseCycle | None = None
    """uvicorn's object for the request that was started last. `cycle` may be that of one that waits behind it."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # In place of uvicorn's method, not around it: uvicorn makes a socket object to ask for the addresses, which
        # takes 8 µs, and uvloop knows them. Sets all attributes that uvicorn's method sets; logs nothing.
        self.connections.add(self)
        self.transport = transport
        self.logger = connection_log
        self.flow = SmallFlowControl(transport)
        self.server, peer = get_address(transport, "sockname"), get_address(transport, "peername")
        self.client = None if peer is None or peer[1] is None else (peer[0], peer[1])
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        # `app_state` is what the lifespan has yielded: a `ServerState`.
        self._limits = cast("RequestLimits", self.app_state["request_limits"])
        if self.is_limited and (
            len(self.connections) > ABORT_FACTOR * self._limits.settings.max_connections
            or self._acquire_address(peer) > ABORT_FACTOR * self._limits.settings.max_connections_per_address
        ):
            transport.abort()
            return
        self._start_request_timer()

    def _acquire_address(self, peer: tuple[str, int | None] | None) -> int:
        """Count the connection for the address of the client, and return how many that has; 0 if it has no limit."""
        slots = self._limits.address_slots
        key = None if peer is None else slots.key_of(peer[0])
        if key is None:
            return 0
        self.release_address = partial(slots.release, key)
        count = slots.acquire(key)
        self._has_too_many_connections = count > slots.max_connections
        return count

    @property
    def has_refused_enough(self) -> bool:
        """Whether nothing more is read after a refusal."""
        return self._discarded_bytes > MAX_DISCARDED_BYTES

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_request_timer()
        self._limits.refused_connections.stop(self)
        active, self._active_cycle = self._active_cycle, None
        if active is not None and active is not self.cycle and not active.response_complete:
            # uvicorn notifies the request that was received last. The application must notice it at this one.
            active.disconnected = True
            active.message_event.set()
        super().connection_lost(exc)

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # uvicorn's type of it is private
        self._active_cycle = cycle
        super()._start_asgi_task(cycle, app)

    @override
    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            self._discarded_bytes += len(data)
            if self.has_refused_enough:
                self.transport.pause_reading()
            return
        if not self._awaits_request:
            self._start_request_timer()
        super().data_received(data)
        if (self._is_reading_head or self._is_reading_trailers) and self._refusal is None:
            # httptools calls `on_header` with whole headers only: a header without end must be counted here.
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.settings.max_url_bytes + self._limits.settings.max_header_bytes:
                self._send_refusal(self._headers_too_large())

    # Callbacks of the parser, in the order of its calls.

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_reading_head, self._head_bytes, self._header_bytes = True, 0, 0
        self._is_reading_trailers, self._trailer_count, self._chunk_count = False, 0, 0
        if not self._awaits_request:
            # A second request in the same segment.
            self._start_request_timer()

    @override
    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        # `url` is a part; uvicorn joins the parts in `self.url`.
        limit = self._limits.settings.max_url_bytes
        if len(self.url) > limit:
            self._abort_parsing(UrlTooLong(f"The URL has more than {limit} bytes (STREAM_SERVER_MAX_URL_BYTES)"))

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        # In place of uvicorn's method, not around it: browsers send some fifteen headers, and a second call for each
        # costs. `expect_100_continue` and `headers` are all that uvicorn's method sets.
        name = name.lower()
        headers, settings = self.headers, self._limits.settings
        self._header_bytes += len(name) + len(value)
        if self._is_reading_head:
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            headers.append((name, value))
        else:
            # A trailer. The scope has the same list of headers; a trailer must not count as one of them, above all not
            # as a credential or as the address of the client (RFC 9110 section 6.5.1).
            self._trailer_count += 1
        if self._header_bytes > settings.max_header_bytes or len(headers) + self._trailer_count > settings.max_headers:
            self._abort_parsing(self._headers_too_large())

    @override
    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            # This aborts the connection, since the response to an earlier request is incomplete.
            self._abort_parsing(BadRequest("Too many requests wait for the response to an earlier one"))
        if self.is_limited:
            self._refuse_crowd()
        self._is_reading_head = False
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Count a chunk. The parser calls this, if there is such a method; uvicorn has none."""
        self._is_reading_trailers, self._head_bytes = True, 0
        self._chunk_count += 1
        if self._chunk_count > MAX_CHUNKS:
            self._abort_parsing(RequestTooLarge(f"The body has more than {MAX_CHUNKS} chunks"))

    @override
    def on_body(self, body: bytes) -> None:
        self._is_reading_trailers = False
        super().on_body(body)

    def _refuse_crowd(self) -> None:
        """Refuse a request if the server, or the address of the client, has too many connections."""
        settings = self._limits.settings
        if self.url.startswith(OPERATOR_PATHS):
            return
        if len(self.connections) > settings.max_connections:
            self._abort_parsing(
                ServerFull("The server has as many connections as it may have (STREAM_SERVER_MAX_CONNECTIONS)")
            )
        if self._has_too_many_connections:
            self._abort_parsing(
                TooManyStreams(
                    f"Your address has {settings.max_connections_per_address} connections, the most that one may have"
                    " (STREAM_SERVER_MAX_CONNECTIONS_PER_ADDRESS). A proxy counts as one, unless it is named in"
                    " STREAM_SERVER_TRUSTED_PROXIES",
                    RETRY_SECONDS,
                )
            )

    @override
    def on_message_complete(self) -> None:
        self._is_reading_trailers = False
        self._stop_request_timer()
        super().on_message_complete()

    @override
    def send_400_response(self, msg: str) -> None:
        # uvicorn calls this when the parser has failed: because the request is not HTTP, or in `_abort_parsing`.
        error = self._refusal or NotHttp("This is not an HTTP/1.1 request (RFC 9112)")
        self._refusal = None
        self._send_refusal(error)

    # Timers.

    def on_request_timeout(self) -> None:
        """End a connection that has not sent a whole request in time."""
        self._awaits_request = False
        if self.parser is None or self.transport.is_closing():
            return
        # `cycle` is uvicorn's request with its answer: the last one of the connection, or `None` before the first.
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if self._is_reading_head or (is_answering and cycle.more_body):
            seconds = self._limits.settings.request_timeout
            self._send_refusal(
                RequestTooSlow(f"The request was not received within {seconds:g} s (STREAM_SERVER_REQUEST_TIMEOUT)")
            )
        elif not is_answering:
            self.transport.close()

    def abort(self) -> None:
        """End a refused connection whose client has not closed it in time."""
        self.transport.abort()

    def _start_request_timer(self) -> None:
        self._awaits_request = True
        self._limits.pending_requests.start(self)

    def _stop_request_timer(self) -> None:
        self._awaits_request = False
        self._limits.pending_requests.stop(self)

    # Refusals.

    def _headers_too_large(self) -> HeadersTooLarge:
        settings = self._limits.settings
        return HeadersTooLarge(
            f"The request has more than {settings.max_headers} headers (STREAM_SERVER_MAX_HEADERS), or more than"
            f" {settings.max_header_bytes} bytes of them (STREAM_SERVER_MAX_HEADER_BYTES)"
        )

    def _abort_parsing(self, error: StreamServerError) -> None:
        """Raise an error in a callback of the parser. uvicorn catches the parser's and calls `send_400_response`."""
        self._refusal = error
        raise error

    def _send_refusal(self, error: StreamServerError) -> None:
        """Answer with a problem, and end the connection once the client has read it."""
        self._refusal = error
        self._stop_request_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._is_reading_head or cycle.response_started:
                # The answer to an earlier request is being sent: the client would take the problem for a part of it.
                self.transport.abort()
                return
            # uvicorn's flags for a client that has gone: the application's `receive` returns `http.disconnect`, and
            # nothing that it sends is written.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(encode_problem(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._limits.refused_connections.start(self)


def encode_problem(error: StreamServerError) -> bytes:
    """Return a whole HTTP response with a problem, after which the connection ends."""
    body = json.dumps(error.problem_body()).encode()
    headers: dict[str, Any] = {
        "content-type": "application/problem+json",
        "content-length": len(body),
        "connection": "close",
    }
    if error.retry_after is not None:
        headers["retry-after"] = error.retry_after
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    # uvicorn's table of status lines.
    return STATUS_LINE[error.status] + head.encode() + b"\r\n" + body
