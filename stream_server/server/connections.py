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
from stream_server.http.endpoints.websocket import closing
from stream_server.protocol.frames import Close
from stream_server.server.flow_control import Gate
from stream_server.server.request_limits import BoundedHttp

quiet = logging.getLogger("uvicorn.error.websocket")
"""Tells what is wrong, and not who comes, goes and says what: URLs and headers are credentials."""

quiet.setLevel(logging.WARNING)

LAST_CHUNK = b"0\r\n\r\n"
"""RFC 9112 section 7.1."""

TAKEN: dict[str, Any] = {"method": "GET"}
"""Stands in for the scope of a request that is over."""


class _NoTimer(asyncio.TimerHandle):
    """Stands in for a timer that has not been set."""

    def __init__(self) -> None:
        pass

    def cancel(self) -> None:
        """Do nothing."""


class _Nowhere:
    """Stands in for a queue that nobody reads."""

    def put_nowait(self, message: object) -> None:
        """Forget it."""


NO_TIMER, NOWHERE = _NoTimer(), _Nowhere()


MOST_HEADS = 1000
"""Heads that are kept at most: clients choose their `Origin`."""


class _Held:
    """Stands in for a connection, and keeps what is written."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.data += data


class Heads:
    """Heads of answers that uvicorn has sent in this second, by what they depend on."""

    def __init__(self) -> None:
        self._dated: object = None
        self._kept: dict[Hashable, bytes] = {}

    def of(self, dated: object) -> dict[Hashable, bytes]:
        """Return those that have the headers which uvicorn gives to all: it has new ones once in a second."""
        if dated is not self._dated or len(self._kept) > MOST_HEADS:
            self._dated, self._kept = dated, {}
        return self._kept


class _Queue(list[Any]):
    """A queue of requests that takes next to no memory while it is empty; a `deque` takes 600 bytes."""

    __slots__ = ()

    def appendleft(self, one: object) -> None:
        """Put one behind all others: `pop` takes the first."""
        self.insert(0, one)


class HttpLine(BoundedHttp):
    """A connection that speaks HTTP/1.1."""

    delivery: Straight | None = None
    parser: httptools.HttpRequestParser | None  # type: ignore[assignment]
    """`None` while none is needed: with what it calls, it takes a kilobyte."""

    _heads = Heads()

    @property
    def full(self) -> bool:
        """Whether more is waiting to be sent than should."""
        return self.flow.write_paused

    def claim(self, scope: dict[str, Any]) -> bool:
        """Tell whether the answer to a request may be written here: unless another one has come behind it since."""
        if self.cycle.scope is not scope:
            return False
        self._taken = self.cycle
        return True

    def head(self, kind: Hashable) -> bytes | None:
        """Return the head of an answer, if one of its kind has been sent in this second, and begin with the answer."""
        cycle = self._taken
        head = self._heads.of(cycle.default_headers).get((kind, cycle.keep_alive))
        if head is not None:
            cycle.response_started, cycle.waiting_for_100_continue = True, False
        return head

    def hold(self) -> None:
        """Keep back what ASGI sends."""
        self._taken.transport = self._held = _Held()  # type: ignore[assignment]

    def release(self, kind: Hashable = None) -> bytes:
        """Return the head that was kept back, and keep nothing back any more."""
        cycle = self._taken
        cycle.transport = self.transport
        head = self._held.data
        if kind is not None:
            self._heads.of(cycle.default_headers)[kind, cycle.keep_alive] = head
        return head

    def take(self) -> None:
        """Have the connection outlive the request, with as little of what that needed as can be."""
        # So uvicorn does not complain that the application has returned before the end of the body.
        self._taken.disconnected = True
        self._taken.message_event = Gate()  # type: ignore[assignment]
        if self.scope is self._taken.scope:
            # Otherwise another request is on its way already.
            self.scope = TAKEN  # type: ignore[assignment]
            self.headers = []
        self._taken.scope = TAKEN  # type: ignore[assignment]
        if not self.pipeline:
            self.pipeline = _Queue()  # type: ignore[assignment]
        if not self._coming:
            # The next request, if there is one, gets another.
            self.parser = None

    async def end(self, closed: Close | None) -> None:
        """End the body, and go on with the connection as uvicorn does."""
        if self.transport.is_closing():
            return
        self.transport.write(LAST_CHUNK)
        self._taken.response_complete = True
        if self._taken.keep_alive:
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
        _extras(self.scope)[LINE] = self
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to a `WebSocketLine`. Nothing that refers to this one shall outlive it."""
        super().handle_websocket_upgrade()
        _extras(self.scope).pop(LINE, None)
        self.parser = None

    def on_response_complete(self) -> None:
        """Go on after a request. What it refers to shall be freed now, and not by the collector of cycles."""
        _extras(self.scope).pop(LINE, None)
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
            _extras(self.scope).pop(LINE, None)
        super().connection_lost(exc)
        if self.delivery is not None:
            self.delivery.gone()


class OperatorLine(HttpLine):
    """A connection to the port of operators: there is room for them, however many clients there are."""

    bounded = False


class WebSocketLine(WebSocketsSansIOProtocol):
    """A connection that has been upgraded to WebSocket."""

    delivery: Straight | None = None

    @property
    def full(self) -> bool:
        """Whether more is waiting to be sent than should."""
        return not self.writable.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self.writable = Gate()  # type: ignore[assignment]
        self.logger = self.conn.logger = quiet

    def take(self) -> None:
        """Have the connection outlive the handshake, with as little of what that needed as can be."""
        # So uvicorn does not close the connection when the application has returned.
        self.close_timer = NO_TIMER
        self.queue = NOWHERE  # type: ignore[assignment]
        self.scope = TAKEN  # type: ignore[assignment]
        if self.read_paused:
            # Something was said before; nobody will come for it.
            self.read_paused = False
            self.transport.resume_reading()
        del self.request, self.response

    async def end(self, closed: Close | None) -> None:
        """Say good-bye."""
        code, reason = closing(closed)
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
        if isinstance(self.close_timer, _NoTimer):
            self.close_timer = None

    def handle_connect(self, event: Request) -> None:
        """Begin with the handshake. The application runs only in the next turn of the loop."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            _extras(self.scope)[LINE] = self

    def send_receive_event_to_app(self) -> None:
        """Hand on a message: to the application or, where the request is over, to the delivery."""
        if self.delivery is None or not isinstance(self.queue, _Nowhere):
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
            _extras(self.scope).pop(LINE, None)
        if self.delivery is not None:
            self.delivery.gone()


def cut_off(connections: Iterable[object]) -> None:
    """Cut off all whose streams have not ended: their clients don't read."""
    for line in list(connections):
        if isinstance(line, HttpLine | WebSocketLine) and line.delivery is not None:
            line.transport.abort()


def notice_the_dead(sock: socket.socket, patience: float) -> None:
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


def _extras(scope: object) -> dict[str, object]:
    """Return a scope as what it is: servers may put keys of their own there."""
    assert isinstance(scope, dict), "ASGI says so"
    return scope
