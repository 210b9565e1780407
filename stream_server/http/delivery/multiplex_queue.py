"""The frames of many streams that share a connection, each with the name that the client has given to its stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property, lru_cache

import msgspec

from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import Framing, Wire

MAX_REPLIES = 64
"""Answers that may wait for a client; beyond that, what it says next is read when it has read."""

MAX_LABELLED_FRAMINGS = 10_000
"""Names for which it is known how frames are framed that bear them."""


class LabelledFrame(Wire):
    """A frame as it is for all, with the name of a stream as its last member.

    It is framed once for each name: those who call their streams the same share the bytes.
    """

    def __init__(self, wire: Wire, name: str) -> None:
        super().__init__(wire.frame, wire.token)
        self._wire = wire
        self._stream_id = name

    @cached_property
    def text(self) -> str:
        """The frame as JSON with its cursor and the name."""
        return f'{self._wire.text[:-1]},"id":{msgspec.json.encode(self._stream_id).decode()}}}'

    def framed(self, frame: Framing) -> bytes:
        """Return `frame(self)`, computed once for each way to frame and each name."""
        return self._wire.framed(_labelled_framing(frame, self._stream_id))


@lru_cache(MAX_LABELLED_FRAMINGS)
def _labelled_framing(frame: Framing, name: str) -> Framing:
    def named(wire: Wire) -> bytes:
        return frame(LabelledFrame(wire, name))

    return named


class MultiplexQueue:
    """What is due to one client, of all its streams: a `courier.Source`.

    Args:
        on_over: Called with the name of a stream whose last frame has been taken.
    """

    def __init__(self, on_over: Callable[[str], None]) -> None:
        self._on_stream_end = on_over
        self._streams: dict[str, Subscription] = {}
        self._ready: dict[str, None] = {}
        """Names of streams that have something due, the longest-waiting first."""

        self._replies: list[Wire] = []
        self._has_room = asyncio.Event()
        self._notify: Callable[[], object] = lambda: None
        self.closed: Close | None = None
        """Why the connection ends."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing will come any more once all that is due has been taken."""
        return self.closed is not None

    def add(self, name: str, subscription: Subscription) -> None:
        """Take in a stream."""
        self._streams[name] = subscription
        if self.closed is not None:
            subscription.disconnect(CloseCode(self.closed.code), self.closed.reason)
        subscription.on_due(lambda: self._mark_ready(name))

    def remove(self, name: str) -> None:
        """Let go of a stream, and of what is due of it."""
        if (subscription := self._streams.pop(name, None)) is not None:
            subscription.on_due(_do_nothing)
        self._ready.pop(name, None)

    def drop_callback(self) -> None:
        """Tell nobody any more which stream is over. Whoever was told refers to this, and shall go with it."""
        self._on_stream_end = _ignore_stream_end

    async def reply(self, wire: Wire) -> None:
        """Put an answer in line, before all frames. It waits while the client reads none."""
        while len(self._replies) >= MAX_REPLIES:
            self._has_room.clear()
            await self._has_room.wait()
        self.push(wire)

    def push(self, wire: Wire) -> None:
        """Put something in line that is about the connection, before all frames."""
        self._replies.append(wire)
        self._notify()

    def on_due(self, notify: Callable[[], object]) -> None:
        """Have `notify` called whenever something becomes due."""
        self._notify = notify
        if self._ready or self._replies:
            notify()

    def take(self) -> list[Wire]:
        """Return all that is due, and forget it."""
        wires, self._replies = self._replies, []
        self._has_room.set()
        ready, self._ready = self._ready, {}
        for name in ready:
            subscription = self._streams[name]
            wires.extend(LabelledFrame(wire, name) for wire in subscription.take())
            if subscription.is_finished:
                self.remove(name)
                self._on_stream_end(name)
        return wires

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection, after what is due; each stream tells why."""
        if self.closed is not None:
            return
        self.closed = Close(code=int(code), reason=reason, reconnect=code.should_reconnect)
        for subscription in self._streams.values():
            subscription.disconnect(code, reason)
        self._notify()

    def _mark_ready(self, name: str) -> None:
        self._ready[name] = None
        self._notify()


def _ignore_stream_end(_name: str) -> None:
    """Do nothing."""


def _do_nothing() -> None:
    """Do nothing."""
