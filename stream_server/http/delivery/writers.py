"""Ways to bring frames to a client.

Where the server is ours, they are written to the connection itself ("straight"); elsewhere ASGI's `send` is stepped,
which comes to its end at once unless the client is slow ("stepped").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable, Sequence
from functools import partial
from types import CoroutineType, coroutine
from typing import Any, Generic, Protocol, TypeVar

from stream_server.http.delivery.scheduler import FrameSource, FrameWriter, JoinedFrames, WriteScheduler
from stream_server.hub.subscription import Subscription
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

Framing = Callable[[Wire], bytes]
OnGone = Callable[[], None] | None
OnMessage = Callable[[bytes], None]


Payload = TypeVar("Payload")
"""What a server sends."""


class ServerConnection(Protocol):
    """A connection of our own server, as its deliveries see it."""

    transport: asyncio.Transport
    writer: DirectWriter | None
    """To be told when the connection is full, free again, or lost."""

    @property
    def is_full(self) -> bool:
        """Whether more is waiting to be sent than should."""

    def detach(self) -> None:
        """Have the connection outlive the request, with as little of what that needed as can be."""

    async def close(self, closed: Close | None) -> None:
        """End what is sent.

        Args:
            closed: Why the connection ends before the stream does, if so.
        """


class HttpServerConnection(ServerConnection, Protocol):
    """A connection of our own server that is answered by HTTP."""

    def claim_response(self, scope: dict[str, Any]) -> bool:
        """Tell whether the answer to a request may be written here: unless another one has come behind it since."""

    def start_with_cached_head(self, kind: Hashable) -> bytes | None:
        """Return the head of an answer, if one of its kind has been sent in this second, and begin with the answer.

        Args:
            kind: All that a head depends on, but for the connection.
        """

    def capture(self) -> None:
        """Keep back what ASGI sends."""

    def flush(self, kind: Hashable = None) -> bytes:
        """Return the head that was kept back, and keep nothing back any more.

        Args:
            kind: As for `head`; `None` where that is not to be remembered.
        """


class DirectWriter(FrameWriter):
    """Brings frames by writing to the connection.

    Args:
        subscription: Where they come from.
        courier: Who calls.
        line: The connection.
        frame: Makes bytes of a frame, as they are on the wire.
        transport: One of `courier.TRANSPORTS`.
        hear: Called with what the client says meanwhile, where that has a meaning.
    """

    __slots__ = ("_connection", "_first", "_frame", "_on_gone", "_owned", "_transport", "on_message")

    _owned: Subscription
    _on_gone: OnGone

    def __init__(
        self,
        subscription: FrameSource,
        courier: WriteScheduler,
        line: ServerConnection,
        frame: Framing,
        hear: OnMessage | None = None,
        *,
        transport: str,
    ) -> None:
        super().__init__(subscription, courier, transport)
        self.on_message = hear
        self._connection = line
        self._transport = line.transport
        self._frame = frame
        self._first = b""
        self.is_blocked = line.is_full
        line.writer = self
        if line.transport.is_closing():
            self.on_client_gone()

    def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
        """Send frames. The connection itself says when it is full."""
        data = _join_frames(wires, self._frame, joined)
        self._counters.bytes += len(data)
        if self._first:
            data, self._first = self._first + data, b""
        self._transport.write(data)

    def unsent_bytes(self) -> int:
        """Return how many bytes wait in the connection."""
        return self._transport.get_write_buffer_size()

    def release_connection(self) -> None:
        """Let go of the connection."""
        self._connection.writer = None

    def abort(self) -> None:
        """Nothing can be sent any more: the client shall notice, and come again."""
        self._transport.abort()
        self.on_client_gone()

    def start_detached(self, subscription: Subscription, on_gone: OnGone = None, *, first: bytes = b"") -> None:
        """Bring frames when the request is over for ASGI: no task and no stack of calls is kept for it.

        Args:
            subscription: Where frames come from; closed at the end.
            on_gone: Called where the client went before the end.
            first: Bytes before the first frame, in the same write.
        """
        self._connection.detach()
        self._first = first
        self.start()
        if self._first and not self._transport.is_closing():
            # Nothing is due yet, but the client shall know that its stream has begun.
            self._transport.write(self._first)
            self._first = b""
        self._owned, self._on_gone = subscription, on_gone
        self.finished.add_done_callback(self._start_ending)

    def _start_ending(self, _over: object) -> None:
        task = asyncio.create_task(self._end_alone(self._owned, self._on_gone), name="end of a stream")
        _ending.add(task)
        task.add_done_callback(_ending.discard)

    async def _end_alone(self, subscription: Subscription, on_gone: OnGone) -> None:
        there = self.finished.result()
        self.stop()
        try:
            if there:
                await self._connection.close(subscription.closed)
        finally:
            subscription.close()
        if on_gone is not None and not subscription.is_complete:
            on_gone()


_ending: set[asyncio.Task[None]] = set()


class AsgiWriter(FrameWriter, Generic[Payload]):
    """Brings frames by stepping ASGI's `send`; only where that waits, since the client is slow, a task goes on with it.

    Args:
        subscription: Where they come from.
        courier: Who calls.
        frame: Makes bytes of a frame.
        send: Sends what `pack` makes of frames, in order. It may wait until the client has read. Best the server's own:
            whatever is around it lies elsewhere in memory for each client, and costs more than it does.
        disconnected: Waits until the client has gone.
        pack: Makes what is sent of frames, given also as bytes.
        transport: One of `courier.TRANSPORTS`.
    """

    __slots__ = ("_disconnect_task", "_frame", "_pack", "_send", "_send_task")

    def __init__(
        self,
        subscription: FrameSource,
        courier: WriteScheduler,
        frame: Framing,
        send: Callable[[Payload], Awaitable[None]],
        disconnected: Coroutine[Any, Any, None],
        *,
        pack: Callable[[Sequence[Wire], bytes], Payload],
        transport: str,
    ) -> None:
        super().__init__(subscription, courier, transport)
        self._frame = frame
        self._send = send
        self._pack = pack
        self._send_task: asyncio.Task[None] | None = None
        self._disconnect_task = asyncio.create_task(disconnected, name="disconnect")
        self._disconnect_task.add_done_callback(lambda _: self.on_client_gone())

    def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
        """Send frames."""
        data = _join_frames(wires, self._frame, joined)
        sending = self._send(self._pack(wires, data))
        if not isinstance(sending, CoroutineType):
            sending = _awaited(sending)
        try:
            waits_for = sending.send(None)
        except StopIteration:
            self._counters.bytes += len(data)
            return
        except Exception as error:  # noqa: BLE001 # whatever a server raises to say that nobody is there
            self._on_send_failed(error)
            return
        self.is_blocked = True
        self._send_task = asyncio.create_task(_go_on(sending, waits_for), name="slow client")
        self._send_task.add_done_callback(partial(self._on_sent, len(data)))

    def release_connection(self) -> None:
        """Let go of the connection."""
        self._disconnect_task.cancel()
        if self._send_task is not None:
            self._send_task.cancel()

    def _on_sent(self, size: int, rest: asyncio.Task[None]) -> None:
        self._send_task = None
        if rest.cancelled():
            return
        if (error := rest.exception()) is not None:
            self._on_send_failed(error)
        else:
            self._counters.bytes += size
            self.unblock()

    def _on_send_failed(self, error: BaseException) -> None:
        log.debug("A client went while frames were sent: %r", error)
        self.on_client_gone()


def pack_frames(wires: Sequence[Wire], _data: bytes) -> Sequence[Wire]:
    """Pack frames where each goes out by itself."""
    return wires


def _join_frames(wires: Sequence[Wire], frame: Framing, joined: JoinedFrames) -> bytes:
    """Return frames as bytes, made once for all clients that are due the same."""
    if len(wires) == 1:
        return wires[0].framed(frame)
    key = (frame, *wires)
    data = joined.get(key)
    if data is None:
        data = joined[key] = b"".join([wire.framed(frame) for wire in wires])
    return data


async def _awaited(sending: Awaitable[None]) -> None:
    """Make a coroutine of what some servers return instead."""
    await sending


@coroutine
def _go_on(sending: Coroutine[Any, Any, None], waits_for: object) -> Generator[Any, Any, None]:
    """Bring a coroutine to its end that has been stepped once, and waits for something."""
    try:
        yield waits_for
        yield from sending
    finally:
        sending.close()
