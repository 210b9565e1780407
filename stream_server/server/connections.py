"""uvicorn's protocols, which let streams write to their connections without a way through ASGI for each frame.

Each puts itself into the scope of its requests, as the `Line` that `transports.delivery` looks for, and tells the
delivery that has taken it when the connection is full, free again, or lost. Headers, ends of bodies and handshakes
remain uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from stream_server.http.delivery.scope import LINE
from stream_server.http.delivery.writers import Straight
from stream_server.http.endpoints.websocket import close_code_and_reason
from stream_server.protocol.frames import Close
from stream_server.server.flow_control import ResumeEvent
from stream_server.server.request_limits import LimitedHttpProtocol

websocket_log = logging.getLogger("uvicorn.error.websocket")
"""Tells what is wrong, and not who comes, goes and says what: URLs and headers are credentials."""

websocket_log.setLevel(logging.WARNING)

LAST_CHUNK = b"0\r\n\r\n"
"""RFC 9112 section 7.1."""

DETACHED_SCOPE: dict[str, Any] = {"method": "GET"}
"""Stands in for the scope of a request that is over."""


class _NullTimer(asyncio.TimerHandle):
    """Stands in for a timer that has not been set."""

    def __init__(self) -> None:
        pass

    def cancel(self) -> None:
        """Do nothing."""


class _NullQueue:
    """Stands in for a queue that nobody reads."""

    def put_nowait(self, message: object) -> None:
        """Forget it."""


NULL_TIMER, NULL_QUEUE = _NullTimer(), _NullQueue()


MAX_CACHED_HEADS = 1000
"""Heads that are kept at most: clients choose their `Origin`."""


class _CapturingTransport:
    """Stands in for a connection, and keeps what is written."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data += data


class ResponseHeads:
    """Heads of answers that uvicorn has sent in this second, by what they depend on."""

    def __init__(self) -> None:
        self._default_headers: object = None
        self._head_cache: dict[Hashable, bytes] = {}

    def for_default_headers(self, dated: object) -> dict[Hashable, bytes]:
        """Return those that have the headers which uvicorn gives to all: it has new ones once in a second."""
        if dated is not self._default_headers or len(self._head_cache) > MAX_CACHED_HEADS:
            self._default_headers, self._head_cache = dated, {}
        return self._head_cache


class _SmallQueue(list[Any]):
    """A queue of requests that takes next to no memory while it is empty; a `deque` takes 600 bytes."""

    __slots__ = ()

    def appendleft(self, one: object) -> None:
        """Put one behind all others: `pop` takes the first."""
        self.insert(0, one)


class HttpConnection(LimitedHttpProtocol):
    """A connection that speaks HTTP/1.1."""

    delivery: Straight | None = None
    parser: httptools.HttpRequestParser | None  # type: ignore[assignment]
    """`None` while none is needed: with what it calls, it takes a kilobyte."""

    _head_cache = ResponseHeads()

    @property
    def is_full(self) -> bool:
        """Whether more is waiting to be sent than should."""
        return self.flow.write_paused

    def claim_response(self, scope: dict[str, Any]) -> bool:
        """Tell whether the answer to a request may be written here: unless another one has come behind it since."""
        if self.cycle.scope is not scope:
            return False
        self._claimed_cycle = self.cycle
        return True

    def start_with_cached_head(self, kind: Hashable) -> bytes | None:
        """Return the head of an answer, if one of its kind has been sent in this second, and begin with the answer."""
        cycle = self._claimed_cycle
        head = self._head_cache.for_default_headers(cycle.default_headers).get((kind, cycle.keep_alive))
        if head is not None:
            cycle.response_started, cycle.waiting_for_100_continue = True, False
        return head

    def capture(self) -> None:
        """Keep back what ASGI sends."""
        self._claimed_cycle.transport = self._captured = _CapturingTransport()  # type: ignore[assignment]

    def flush(self, kind: Hashable = None) -> bytes:
        """Return the head that was kept back, and keep nothing back any more."""
        cycle = self._claimed_cycle
        cycle.transport = self.transport
        head = self._captured.data
        if kind is not None:
            self._head_cache.for_default_headers(cycle.default_headers)[kind, cycle.keep_alive] = head
        return head

    def detach(self) -> None:
        """Have the connection outlive the request, with as little of what that needed as can be."""
        # So uvicorn does not complain that the application has returned before the end of the body.
        self._claimed_cycle.disconnected = True
        self._claimed_cycle.message_event = ResumeEvent()  # type: ignore[assignment]
        if self.scope is self._claimed_cycle.scope:
            # Otherwise another request is on its way already.
            self.scope = DETACHED_SCOPE  # type: ignore[assignment]
            self.headers = []
        self._claimed_cycle.scope = DETACHED_SCOPE  # type: ignore[assignment]
        if not self.pipeline:
            self.pipeline = _SmallQueue()  # type: ignore[assignment]
        if not self._awaits_request:
            # The next request, if there is one, gets another.
            self.parser = None

    async def close(self, closed: Close | None) -> None:
        """End the body, and go on with the connection as uvicorn does."""
        if self.transport.is_closing():
            return
        self.transport.write(LAST_CHUNK)
        self._claimed_cycle.response_complete = True
        if self._claimed_cycle.keep_alive:
            self.on_response_complete()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self.parser is None:
            self.parser = httptools.HttpRequestParser(self)
            # As uvicorn does.
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Begin with a request."""
        _mutable_scope(self.scope)[LINE] = self
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to a `WebSocketConnection`. Nothing that refers to this one shall outlive it."""
        super().handle_websocket_upgrade()
        _mutable_scope(self.scope).pop(LINE, None)
        self.parser = None

    def on_response_complete(self) -> None:
        """Go on after a request. What it refers to shall be freed now, and not by the collector of cycles."""
        _mutable_scope(self.scope).pop(LINE, None)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Be full."""
        super().pause_writing()
        if self.delivery is not None:
            self.delivery.behind = True

    def resume_writing(self) -> None:
        """Be free again."""
        super().resume_writing()
        if self.delivery is not None:
            self.delivery.catch_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Be lost."""
        if self.scope is not None:
            _mutable_scope(self.scope).pop(LINE, None)
        super().connection_lost(exc)
        if self.delivery is not None:
            self.delivery.gone()


class OperatorConnection(HttpConnection):
    """A connection to the port of operators: there is room for them, however many clients there are."""

    bounded = False


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A connection that has been upgraded to WebSocket."""

    delivery: Straight | None = None

    @property
    def is_full(self) -> bool:
        """Whether more is waiting to be sent than should."""
        return not self.writable.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self.writable = ResumeEvent()  # type: ignore[assignment]
        self.logger = self.conn.logger = websocket_log

    def detach(self) -> None:
        """Have the connection outlive the handshake, with as little of what that needed as can be."""
        # So uvicorn does not close the connection when the application has returned.
        self.close_timer = NULL_TIMER
        self.queue = NULL_QUEUE  # type: ignore[assignment]
        self.scope = DETACHED_SCOPE  # type: ignore[assignment]
        if self.read_paused:
            # Something was said before; nobody will come for it.
            self.read_paused = False
            self.transport.resume_reading()
        del self.request, self.response

    async def close(self, closed: Close | None) -> None:
        """Say good-bye."""
        code, reason = close_code_and_reason(closed)
        with suppress(ClientDisconnected):
            await self.send({"type": "websocket.close", "code": code, "reason": reason})

    async def send(self, message: Any) -> None:  # noqa: ANN401 # uvicorn has types of ASGI for itself alone
        """Send what the application sends, such as the answer that refuses a handshake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # So uvicorn does not complain that there was no handshake.
            self.handshake_complete = True

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application has returned."""
        super().on_task_complete(task)
        if isinstance(self.close_timer, _NullTimer):
            self.close_timer = None

    def handle_connect(self, event: Request) -> None:
        """Begin with the handshake. The application runs only in the next turn of the loop."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            _mutable_scope(self.scope)[LINE] = self

    def send_receive_event_to_app(self) -> None:
        """Hand on a message: to the application or, where the request is over, to the delivery."""
        if self.delivery is None or not isinstance(self.queue, _NullQueue):
            super().send_receive_event_to_app()
            return
        data, self.frames = b"".join(self.frames), []
        if self.delivery.hear is not None:
            self.delivery.hear(data)

    def handle_close(self, event: Frame) -> None:
        """The client says good-bye: nothing must be sent after the answer (RFC 6455 section 5.5.1)."""
        super().handle_close(event)
        if self.delivery is not None:
            self.delivery.gone()

    def pause_writing(self) -> None:
        """Be full."""
        super().pause_writing()
        if self.delivery is not None:
            self.delivery.behind = True

    def resume_writing(self) -> None:
        """Be free again."""
        super().resume_writing()
        if self.delivery is not None:
            self.delivery.catch_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Be lost."""
        super().connection_lost(exc)
        if hasattr(self, "scope"):
            _mutable_scope(self.scope).pop(LINE, None)
        if self.delivery is not None:
            self.delivery.gone()


def abort_open_streams(connections: Iterable[object]) -> None:
    """Cut off all whose streams have not ended: their clients don't read."""
    for line in list(connections):
        if isinstance(line, HttpConnection | WebSocketConnection) and line.delivery is not None:
            line.transport.abort()


def set_dead_peer_timeout(sock: socket.socket, patience: float) -> None:
    """Have connections that a socket accepts end when their client has vanished without a word.

    The system does it: whoever does not acknowledge what was sent (each stream sends a `ping` now and then), or lets
    nothing be sent, for as long as that, is gone (RFC 5482); as is, where nothing is sent, who answers no probe.

    Args:
        sock: A listening socket. What it accepts inherits its options.
        patience: Seconds.
    """
    options = {
        "TCP_USER_TIMEOUT": round(1000 * patience),
        "TCP_KEEPIDLE": max(1, round(patience / 3)),
        "TCP_KEEPINTVL": max(1, round(patience / 3)),
        "TCP_KEEPCNT": 2,
    }
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _mutable_scope(scope: object) -> dict[str, object]:
    """Return a scope as what it is: servers may put keys of their own there."""
    assert isinstance(scope, dict), "ASGI says so"
    return scope
