"""Our subclasses of uvicorn's protocols, which let streams write to their connections past ASGI.

Each puts itself into the scopes of its requests (`delivery.scope.CONNECTION`). A stream that finds its connection there
detaches it from uvicorn's request and writes frames to the transport; the connection notifies the stream when the write
buffer is full, when it has drained, and when the connection is lost. Headers, ends of bodies, and handshakes
stay uvicorn's (`docs/decisions/0010`).

This package alone uses private parts of uvicorn: here, in `websocket_connection`, `request_limits`, `flow_control` and
`main`. `pyproject.toml` bounds the version, and `tests/unit/server/test_uvicorn_internals.py` fails when one of these
parts disappears.
"""

from __future__ import annotations

import socket
from collections.abc import Hashable, Iterable
from typing import Any

import httptools
from starlette.types import Receive
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from stream_server.errors import BadRequest
from stream_server.http.delivery.asgi_scope import CONNECTION
from stream_server.protocol.frames import Close
from stream_server.server.flow_control import ResumeEvent
from stream_server.server.placeholders import (
    CapturingTransport,
    SmallQueue,
)
from stream_server.server.request_limits import LimitedHttpProtocol
from stream_server.server.stream_connection import DETACHED_SCOPE, StreamConnection, extensible
from stream_server.server.websocket_connection import WebSocketConnection

LAST_CHUNK = b"0\r\n\r\n"
"""End of a chunked body (RFC 9112 section 7.1)."""

RECEIVE_BUFFER_BYTES = 64 * 1024

MAX_CACHED_HEADS = 1000
"""Bound of the response-head cache: its keys contain the header `Origin`, which clients choose."""


class ResponseHeads:
    """Response heads that uvicorn has written in the current second, by what they depend on."""

    def __init__(self) -> None:
        self._default_headers: object = None
        self._heads: dict[Hashable, bytes] = {}

    def for_default_headers(self, default_headers: object) -> dict[Hashable, bytes]:
        """Return the heads that contain these headers, as a dictionary that new ones are added to.

        Args:
            default_headers: uvicorn's list of headers for all responses. It contains `Date`, so uvicorn replaces the
                list every second; it is compared by identity.
        """
        if default_headers is not self._default_headers or len(self._heads) > MAX_CACHED_HEADS:
            self._default_headers, self._heads = default_headers, {}
        return self._heads


class HttpConnection(StreamConnection, LimitedHttpProtocol):
    """An HTTP/1.1 connection that streams can write to directly."""

    # uvicorn's attribute. `None` while a stream goes on: the parser and the methods that it binds take a kilobyte.
    parser: httptools.HttpRequestParser | None  # type: ignore[assignment]

    _head_cache = ResponseHeads()
    _claimed_cycle: RequestResponseCycle
    """uvicorn's object for the request whose response is written directly."""

    _captured: CapturingTransport

    @property
    def is_full(self) -> bool:
        """Whether the write buffer is above its high-water mark."""
        # uvicorn sets it in `pause_writing` and `resume_writing`.
        return self.flow.write_paused

    def claim_response(self, scope: dict[str, Any]) -> bool:
        """Whether the response to a request may be written directly: not if a pipelined request came after it."""
        # `cycle` is the request that was received last. It is answered last, so only its response may be claimed.
        if self.cycle.scope is not scope:
            return False
        self._claimed_cycle = self.cycle
        return True

    def start_with_cached_head(self, kind: Hashable) -> bytes | None:
        """Start the response with a cached head of its kind, and return the head; `None` where none is cached."""
        cycle = self._claimed_cycle
        # `default_headers` and `keep_alive` go into each head that uvicorn writes.
        head = self._head_cache.for_default_headers(cycle.default_headers).get((kind, cycle.keep_alive))
        if head is not None:
            # What uvicorn sets when it writes a head.
            cycle.response_started, cycle.waiting_for_100_continue = True, False
        return head

    def capture(self) -> None:
        """Capture what uvicorn writes for the claimed response, until `flush`."""
        # uvicorn writes responses to `transport` of the cycle, and has checked them before.
        self._claimed_cycle.transport = self._captured = CapturingTransport()  # type: ignore[assignment]

    def flush(self, kind: Hashable = None) -> bytes:
        """Stop capturing, and return what was captured; cache it as the head of a kind, unless that is `None`."""
        cycle = self._claimed_cycle
        cycle.transport = self.transport
        head = self._captured.data
        if kind is not None:
            self._head_cache.for_default_headers(cycle.default_headers)[kind, cycle.keep_alive] = head
        return head

    def detach(self) -> None:
        """Keep the connection open when the application returns, and free what uvicorn holds for the request."""
        cycle = self._claimed_cycle
        # uvicorn does not log "returned without completing response" for a client that has gone.
        cycle.disconnected = True
        # uvicorn sets the event when the connection is lost; nothing waits for it any more.
        cycle.message_event = ResumeEvent()  # type: ignore[assignment]
        if self.scope is cycle.scope:
            # Otherwise they are those of the next request already.
            self.scope = DETACHED_SCOPE  # type: ignore[assignment]
            self.headers = []
        # uvicorn's `send` reads the method, if the end of the body is sent by ASGI.
        cycle.scope = DETACHED_SCOPE  # type: ignore[assignment]
        if not self.pipeline:
            self.pipeline = SmallQueue()  # type: ignore[assignment]
        if not self._awaits_request:
            # Otherwise it has parsed a part of the next request. `data_received` makes a new one.
            self.parser = None

    async def close(self, closed: Close | None) -> None:
        """End the body, and go on with the connection as uvicorn does after a response."""
        if self.transport.is_closing():
            return
        self.transport.write(LAST_CHUNK)
        # What uvicorn does at the end of a body. With `keep_alive`, `on_response_complete` starts the next pipelined
        # request, or the timer of idle connections.
        self._claimed_cycle.response_complete = True
        if self._claimed_cycle.keep_alive:
            self.on_response_complete()
        else:
            self.transport.close()

    @property
    def is_reading_paused(self) -> bool:
        """Whether nothing is to be read: uvicorn has too much of the body, or the request was refused."""
        return self.flow.read_paused or self.has_refused_enough

    @override
    def data_received(self, data: bytes) -> None:
        self._limits.parse_turns.receive(self, data)

    def parse(self, data: bytes) -> None:
        if self.parser is None:
            self.parser = httptools.HttpRequestParser(self)
            # As in uvicorn's constructor.
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        super().data_received(data)

    @override
    def on_headers_complete(self) -> None:
        assert self.parser is not None, "it calls this"
        if self.parser.should_upgrade() and self._should_upgrade():
            self._check_handshake(self.parser.get_method())
        # Before uvicorn starts the application. uvicorn's HTTP scopes have no extensions.
        extensible(self.scope)["extensions"] = {CONNECTION: self}
        super().on_headers_complete()

    @override
    def handle_websocket_upgrade(self) -> None:
        # In place of uvicorn's method, which has the `websockets` library parse the head a second time. That has other
        # rules and limits than our parser, and uvicorn does not answer what it refuses.
        self.connections.discard(self)
        connection = WebSocketConnection(self.config, self.server_state, self.app_state)
        connection.connection_made(self.transport)
        connection.parse_turns, connection.release_address = self._limits.parse_turns, self.release_address
        connection.start_handshake(self.url, self.headers)
        self.transport.set_protocol(connection)
        # The connection belongs to that object now. No reference to this one may outlive it: the garbage collector runs
        # rarely (`main.GC_THRESHOLDS`).
        self._break_cycle()
        self.parser = None

    def _check_handshake(self, method: bytes) -> None:
        """Refuse a WebSocket handshake that is no plain GET. Behind an unfinished response, this aborts the connection.

        A stream that writes the response would not notice that the connection has become a WebSocket, and would never
        end.
        """
        is_plain_get = method == b"GET" and not any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        )
        if not is_plain_get or (self.cycle is not None and not self.cycle.response_complete):
            self._abort_parsing(
                BadRequest(
                    "A WebSocket handshake must be a GET without a body, so without `Transfer-Encoding`, and without"
                    " `Content-Length` or with 0"
                )
            )

    @override
    def on_response_complete(self) -> None:
        self._break_cycle()
        super().on_response_complete()


class OperatorConnection(HttpConnection):
    """A connection to the operators' port, which is open however many clients there are."""

    is_limited = False


class UvicornResponse:
    """A response of any of uvicorn's HTTP implementations, which can be ended before its body is complete.

    ASGI has no message for that. Other servers close the connection when the application returns, and log an error.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def reset(self) -> None:
        """Close the connection after what was written, without an end of the body."""
        # uvicorn logs no error about the incomplete body of a client that has gone.
        self._cycle.disconnected = True
        self._cycle.transport.close()

    def abort(self) -> None:
        """Close the connection at once. What the client has not read is discarded."""
        self._cycle.disconnected = True
        self._cycle.transport.abort()


def find_response(receive: Receive) -> UvicornResponse | None:
    """Return the response to a request, if uvicorn is the server.

    Args:
        receive: As uvicorn passes it to the application.
    """
    # `receive` is a method of a `RequestResponseCycle`: of the one in `httptools_impl`, or of its twin in `h11_impl`.
    cycle: Any = getattr(receive, "__self__", None)
    if hasattr(cycle, "transport") and hasattr(cycle, "disconnected"):
        return UvicornResponse(cycle)
    return None


def abort_open_streams(connections: Iterable[object]) -> None:
    """Abort the connections whose streams have not ended: their clients do not read.

    Args:
        connections: uvicorn's set of open connections, which changes meanwhile.
    """
    for connection in list(connections):
        if isinstance(connection, HttpConnection | WebSocketConnection) and connection.writer is not None:
            connection.transport.abort()


def limit_receive_buffer(sock: socket.socket) -> None:
    """Limit what the kernel keeps of each connection that was not read yet. Linux doubles the size.

    By default it grows to 6 MiB for each connection, and the kernel has one bound for all of them (`tcp_mem`).

    Args:
        sock: A listening socket. The connections that it accepts inherit its options.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def set_dead_peer_timeout(sock: socket.socket, seconds: float) -> None:
    """Have the system end connections whose client has vanished.

    A client counts as vanished if it acknowledges no data for so long, or accepts none (RFC 5482). Each stream sends a
    `ping` now and then. Where nothing is sent, keep-alive probes that are not answered end the connection.

    Args:
        sock: A listening socket. The connections that it accepts inherit its options.
        seconds: Time without an acknowledgement.
    """
    options = {
        "TCP_USER_TIMEOUT": round(1000 * seconds),
        "TCP_KEEPIDLE": max(1, round(seconds / 3)),
        "TCP_KEEPINTVL": max(1, round(seconds / 3)),
        "TCP_KEEPCNT": 2,
    }
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
