"""The two writers: `DirectWriter` for our own server, `AsgiWriter` for any other ASGI server.

Under our server, frames go to the transport of the connection, and nothing is kept of the request
(`docs/decisions/0010`). Elsewhere they go through ASGI's `send`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable, Sequence
from functools import partial
from types import CoroutineType, coroutine
from typing import Any, Generic, Protocol, TypeVar

from typing_extensions import override

from stream_server.http.delivery.scheduler import FrameSource, FrameWriter, JoinedFrames, WriteScheduler
from stream_server.hub.subscription import Subscription
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import Framing, Wire

log = logging.getLogger(__name__)

OnGone = Callable[[], None] | None
OnMessage = Callable[[bytes], None]


Payload = TypeVar("Payload")
"""The argument of a `send`."""


class ServerConnection(Protocol):
    """A connection of our own server that a stream can write to directly (`server.client_connections`)."""

    transport: asyncio.Transport
    writer: DirectWriter | None
    """Is blocked when the write buffer is above its high-water mark, unblocked when it has drained, and finished when
    the connection is lost."""

    @property
    def is_full(self) -> bool:
        """Whether the write buffer is above its high-water mark."""

    def detach(self) -> None:
        """Keep the connection open when the application returns, and free what the server holds for the request."""

    async def close(self, closed: Close | None) -> None:
        """End the body, or close the WebSocket.

        Args:
            closed: Why the connection ends before the stream does, if it does.
        """


class HttpServerConnection(ServerConnection, Protocol):
    """A connection that answers an HTTP request."""

    def claim_response(self, scope: dict[str, Any]) -> bool:
        """Return whether the response may be written to the connection: no pipelined request has followed yet."""

    def start_with_cached_head(self, kind: Hashable) -> bytes | None:
        """Start the response with a cached head and return that; `None` if none of the kind was sent in this second.

        Args:
            kind: Everything that the head depends on, apart from the connection.
        """

    def capture(self) -> None:
        """Hold back what ASGI's `send` writes."""

    def flush(self, kind: Hashable = None) -> bytes:
        """Return the head that was held back, and hold back no more.

        Args:
            kind: As for `start_with_cached_head`; `None` if the head must not be cached.
        """


class DirectWriter(FrameWriter):
    """Writes frames to the transport of a connection of our own server.

    Args:
        subscription: Where the frames come from.
        scheduler: The scheduler of the event loop.
        connection: The connection.
        framing: Encodes a frame as the bytes on the wire.
        on_message: Called with each message of the client, if its messages have a meaning.
        transport: One of `scheduler.TRANSPORTS`.
        ping_interval: Seconds without a write after which a `ping` is sent, if shorter than that of the scheduler.
    """

    __slots__ = ("_connection", "_first", "_framing", "_on_gone", "_owned", "_transport", "on_message")

    _owned: Subscription
    _on_gone: OnGone

    def __init__(
        self,
        subscription: FrameSource,
        scheduler: WriteScheduler,
        connection: ServerConnection,
        framing: Framing,
        on_message: OnMessage | None = None,
        *,
        transport: str,
        ping_interval: float | None = None,
    ) -> None:
        super().__init__(subscription, scheduler, transport, ping_interval)
        self.on_message = on_message
        self._connection = connection
        self._transport = connection.transport
        self._framing = framing
        self._first = b""
        # Back-pressure: from now on the connection sets and resets it (`pause_writing` and `resume_writing`).
        self.is_blocked = connection.is_full
        connection.writer = self
        if connection.transport.is_closing():
            self.on_client_gone()

    @override
    def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
        data = join_frames(wires, self._framing, joined)
        self.counters.bytes += len(data)
        if self._first:
            data, self._first = self._first + data, b""
        self._transport.write(data)

    @override
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    @override
    def release_connection(self) -> None:
        self._connection.writer = None

    @override
    def abort(self) -> None:
        # The client must notice that its stream is broken, and reconnect.
        self._transport.abort()
        self.on_client_gone()

    def start_detached(self, subscription: Subscription, on_gone: OnGone = None, *, first: bytes = b"") -> None:
        """Start to write, for a request whose application returns now: no task and no call stack is kept for it.

        Args:
            subscription: Where the frames come from; closed at the end.
            on_gone: Called if the client disconnects before the end of the stream.
            first: Bytes before the first frame, in the same write.
        """
        self._connection.detach()
        self._first = first
        self.start()
        if self._first and not self._transport.is_closing():
            # No frame is due yet: the client gets the response head, and knows that the stream has started.
            self._transport.write(self._first)
            self._first = b""
        self._owned, self._on_gone = subscription, on_gone
        self.finished.add_done_callback(self._start_ending)

    def _start_ending(self, _finished: object) -> None:
        # Ending may wait: a WebSocket's close frame is sent by a coroutine of uvicorn.
        self._scheduler.endings.start(self._end_alone(self._owned, self._on_gone))

    async def _end_alone(self, subscription: Subscription, on_gone: OnGone) -> None:
        """Do what the application would do after the last frame, had it not returned.

        The order matters. `stop` comes first: it releases the connection, which may read its next request as soon as
        the response is complete. The subscription is closed last, and in any case: with it, the caller's slot is
        released and the run is no longer watched. `on_gone` may cancel the run, so it comes when that is so.
        """
        is_client_there = self.finished.result()
        self.stop()
        try:
            if is_client_there:
                await self._connection.close(subscription.closed)
        finally:
            subscription.close()
        if on_gone is not None and not subscription.is_complete:
            on_gone()


class AsgiWriter(FrameWriter, Generic[Payload]):
    """Writes frames through the `send` of an ASGI server.

    `send` is a coroutine that waits while the client reads too slowly, and is run here up to that point. So there is a
    task only while a client is slow. One task for each write would cost 6 µs, where a frame costs 10 µs in all
    (`make bench-fanout`, "SSE, plain ASGI").

    Args:
        subscription: Where the frames come from.
        scheduler: The scheduler of the event loop.
        framing: Encodes a frame as bytes.
        send: Sends a payload, one at a time. Preferably the server's own: a `send` that middlewares have wrapped lies
            elsewhere in memory for each client, and these cache misses cost more than the call.
        disconnect: Waits until the client has disconnected.
        pack: Makes a payload of frames, which it gets also in bytes.
        transport: One of `scheduler.TRANSPORTS`.
        ping_interval: Seconds without a write after which a `ping` is sent, if shorter than that of the scheduler.
    """

    __slots__ = ("_disconnect_task", "_framing", "_pack", "_send", "_send_task")

    def __init__(
        self,
        subscription: FrameSource,
        scheduler: WriteScheduler,
        framing: Framing,
        send: Callable[[Payload], Awaitable[None]],
        disconnect: Coroutine[Any, Any, Any],
        *,
        pack: Callable[[Sequence[Wire], bytes], Payload],
        transport: str,
        ping_interval: float | None = None,
    ) -> None:
        super().__init__(subscription, scheduler, transport, ping_interval)
        self._framing = framing
        self._send = send
        self._pack = pack
        self._send_task: asyncio.Task[None] | None = None
        self._disconnect_task = asyncio.create_task(disconnect, name="disconnect")
        self._disconnect_task.add_done_callback(lambda _: self.on_client_gone())

    @override
    def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
        data = join_frames(wires, self._framing, joined)
        sending = self._send(self._pack(wires, data))
        if not isinstance(sending, CoroutineType):
            sending = _await(sending)
        # What a task does in its first step, but without the task: run to the first wait, or to the end.
        # `asyncio.Task(sending, eager_start=True)` is that, from Python 3.12 on.
        try:
            waits_for = sending.send(None)
        except StopIteration:
            self.counters.bytes += len(data)
            return
        except Exception as error:  # noqa: BLE001 # servers raise different exceptions when the client is gone
            self._on_send_failed(error)
            return
        # Back-pressure: frames stay in the subscription until `send` returns.
        self.is_blocked = True
        self._send_task = asyncio.create_task(_resume_coroutine(sending, waits_for), name="slow client")
        self._send_task.add_done_callback(partial(self._on_sent, len(data)))

    @override
    def release_connection(self) -> None:
        self._disconnect_task.cancel()
        if self._send_task is not None:
            self._send_task.cancel()

    def _on_sent(self, size: int, send_task: asyncio.Task[None]) -> None:
        self._send_task = None
        if send_task.cancelled():
            return
        if (error := send_task.exception()) is not None:
            self._on_send_failed(error)
        else:
            self.counters.bytes += size
            self.unblock()

    def _on_send_failed(self, error: BaseException) -> None:
        log.debug("Sending frames failed, the client has gone: %r", error)
        self.on_client_gone()


def pack_frames(wires: Sequence[Wire], _data: bytes) -> Sequence[Wire]:
    """Return the frames themselves as payload, for a `send` that sends each by itself."""
    return wires


def join_frames(wires: Sequence[Wire], framing: Framing, joined: JoinedFrames) -> bytes:
    """Return framed frames in one piece, the same one for successive clients that are due the same frames."""
    if len(wires) == 1:
        return wires[0].framed(framing)
    last = joined.get(framing)
    if last is not None and last[0] == wires:
        return last[1]
    data = b"".join([wire.framed(framing) for wire in wires])
    joined[framing] = wires, data
    return data


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


@coroutine
def _resume_coroutine(sending: Coroutine[Any, Any, None], waits_for: object) -> Generator[Any, Any, None]:
    """Run a coroutine to its end that was started outside of a task and has yielded what it waits for.

    Only a generator can pass that on to the task (a future, or `None`): Python refuses to await a suspended coroutine.
    """
    try:
        yield waits_for
        yield from sending
    finally:
        sending.close()
