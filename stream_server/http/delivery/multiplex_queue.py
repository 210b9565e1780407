"""The due frames of several streams that share a connection, each labelled with the ID of its stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property, lru_cache

import msgspec
from typing_extensions import override

from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import Framing, Wire

MAX_REPLIES = 64
"""Replies that may wait for a client. Beyond that, no message of the client is read until it has read replies."""

MAX_ENCODED_IDS = 10_000
"""Stream IDs whose JSON is cached."""


class LabelledFrame(Wire):
    """A frame with the ID of a stream as its last member.

    Frames that have the same ID are equal. The frame itself keeps the bytes of the ID that was last: clients with the
    same ID, which are written to one after the other, share them, and different IDs leave no more than one entry.
    """

    def __init__(self, wire: Wire, stream_id: str) -> None:
        super().__init__(wire.frame, wire.token)
        self._wire = wire
        self._stream_id = stream_id

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelledFrame) and (self._wire, self._stream_id) == (other._wire, other._stream_id)

    @override
    def __hash__(self) -> int:
        return hash((self._wire, self._stream_id))

    @cached_property
    @override
    def text(self) -> str:
        return f'{self._wire.text[:-1]},"id":{_encode_id(self._stream_id)}}}'

    @override
    def framed(self, framing: Framing) -> bytes:
        last = self._wire.last_labelled
        if last is None or last[:2] != (framing, self._stream_id):
            last = self._wire.last_labelled = framing, self._stream_id, framing(self)
        return last[2]


@lru_cache(MAX_ENCODED_IDS)
def _encode_id(stream_id: str) -> str:
    return msgspec.json.encode(stream_id).decode()


class MultiplexQueue:
    """The frames that are due to one client, of all its streams: a `scheduler.FrameSource`.

    Args:
        on_stream_end: Called with the ID of a stream whose last frame was taken.
    """

    def __init__(self, on_stream_end: Callable[[str], None]) -> None:
        self._on_stream_end = on_stream_end
        self._streams: dict[str, Subscription] = {}
        self._ready: dict[str, None] = {}
        """IDs of the streams with due frames, as a set in order of waiting."""

        self._replies: list[Wire] = []
        self._has_room = asyncio.Event()
        self._notify: Callable[[], object] = lambda: None
        self.closed: Close | None = None
        """Why the connection ends; `None` while it goes on."""

    @property
    def is_complete(self) -> bool:
        """Whether no frames follow those that are due."""
        return self.closed is not None

    def add(self, stream_id: str, subscription: Subscription) -> None:
        self._streams[stream_id] = subscription
        if self.closed is not None:
            subscription.disconnect(CloseCode(self.closed.code), self.closed.reason)
        subscription.on_due(lambda: self._mark_ready(stream_id))

    def remove(self, stream_id: str) -> None:
        """Forget a stream and its due frames."""
        if (subscription := self._streams.pop(stream_id, None)) is not None:
            subscription.on_due(_do_nothing)
        self._ready.pop(stream_id, None)

    def drop_callback(self) -> None:
        """Break the reference cycle with the owner of the callback, so that both are freed at once."""
        self._on_stream_end = _ignore_stream_end

    async def reply(self, wire: Wire) -> None:
        """Queue a reply to a message of the client, before all frames. Waits while too many replies are queued."""
        while len(self._replies) >= MAX_REPLIES:
            self._has_room.clear()
            await self._has_room.wait()
        self.push(wire)

    def push(self, wire: Wire) -> None:
        """Queue a frame about the connection, before the frames of all streams."""
        self._replies.append(wire)
        self._notify()

    def on_due(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        if self._ready or self._replies:
            notify()

    def take(self) -> list[Wire]:
        wires, self._replies = self._replies, []
        self._has_room.set()
        ready, self._ready = self._ready, {}
        for stream_id in ready:
            subscription = self._streams[stream_id]
            wires.extend(LabelledFrame(wire, stream_id) for wire in subscription.take())
            if subscription.is_finished:
                self.remove(stream_id)
                self._on_stream_end(stream_id)
        return wires

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection after the due frames; each stream gets a `close` frame."""
        if self.closed is not None:
            return
        self.closed = Close(code=int(code), reason=reason, reconnect=code.should_reconnect)
        for subscription in self._streams.values():
            subscription.disconnect(code, reason)
        self._notify()

    def _mark_ready(self, stream_id: str) -> None:
        self._ready[stream_id] = None
        self._notify()


def _ignore_stream_end(_stream_id: str) -> None:
    pass


def _do_nothing() -> None:
    pass
