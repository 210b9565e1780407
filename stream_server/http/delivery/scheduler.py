"""The courier of an event loop: calls at each client that has something due, or has heard nothing for too long.

A subscription says that something is due; the courier hands it on in the loop's next turn, so that all that becomes due
in one turn goes out in one write, and without a task or a timer for each client.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from stream_server.http.delivery.pump import PING
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

PING_ONLY = (PING,)

MAX_WRITES_PER_TURN = 500
"""Deliveries after which the event loop does what else there is to do, before it goes on with the others."""

WHEEL_SLOTS = 16
"""Into how many parts the wheel of heartbeats divides the time of silence."""

TRANSPORTS = ("sse", "ndjson", "websocket", "multiplex", "result", "wait")
"""Ways to a client, as metrics name them; the last two wait for one answer."""

AGE_JITTER = (0.9, 1.0)
"""A connection lives for so much of the age that is allowed, so that those who came at once don't all go at once."""

CLOSE_TIMEOUT_PINGS = 20
"""For so many times of silence a client may take to read what is due when its connection ends. Then it is cut off: else
who reads a byte now and then would be here for days."""

JoinedFrames = MutableMapping[tuple[object, ...], bytes]
"""What several clients get in one write, made once: by way of framing and frames."""


class TransportCounters:
    """What has been sent by one transport."""

    __slots__ = ("bytes", "frames", "waiting")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        """Of frames, as they are framed."""

        self.waiting = 0
        """Requests that wait for an answer, and get no frames."""

    @contextmanager
    def count_waiting(self) -> Iterator[None]:
        """Count a request that waits."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class FrameSource(Protocol):
    """Where the frames of a delivery come from: a `Subscription`, or many."""

    @property
    def is_complete(self) -> bool:
        """Whether the last frame of the connection is due, or has been taken."""

    @property
    def closed(self) -> Close | None:
        """Why the connection ends before the stream does."""

    def on_due(self, notify: Callable[[], object]) -> None:
        """Have something called whenever a frame becomes due."""

    def take(self) -> Sequence[Wire]:
        """Return all that is due, and forget it."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection, after what is due, with a `close` frame that says why."""


class FrameWriter(ABC):
    """What brings one client its frames.

    Args:
        subscription: Where they come from.
        courier: Who calls.
        transport: One of `TRANSPORTS`.
    """

    __slots__ = (
        "_counters",
        "_pings_while_closing",
        "_scheduler",
        "_subscription",
        "expires_at",
        "finished",
        "is_blocked",
        "is_ping_due",
        "is_scheduled",
        "last_write_at",
        "transport_name",
        "wheel_slot",
    )

    def __init__(self, subscription: FrameSource, courier: WriteScheduler, transport: str) -> None:
        self._subscription = subscription
        self._scheduler = courier
        self.transport_name = transport
        self._counters = courier.counters[transport]
        self.finished: asyncio.Future[bool] = courier.loop.create_future()
        """Done when nothing more can be sent: `True` where all has been, `False` where the client is gone."""

        self.is_blocked = False
        """Whether nothing can be sent: the client must read first, or it is over."""

        self.is_scheduled = False
        self.is_ping_due = False
        """Whether a `ping` is due, unless something else is."""

        self.last_write_at = 0.0
        self.expires_at = math.inf
        """When the connection has lived for long enough."""

        self.wheel_slot = 0
        self._pings_while_closing = 0

    @contextmanager
    def run(self) -> Iterator[asyncio.Future[bool]]:
        """Bring frames until the end of the context."""
        self.start()
        try:
            yield self.finished
        finally:
            self.stop()

    def start(self) -> None:
        """Bring frames. What is due already is sent at once."""
        self._scheduler.add(self)
        self.is_scheduled = True
        self.write_due_frames(self._scheduler.loop.time(), {})
        self._subscription.on_due(self.schedule_write)

    def stop(self) -> None:
        """Bring no more."""
        self._subscription.on_due(_do_nothing)
        self.on_client_gone()
        self._scheduler.remove(self)
        self.release_connection()

    def schedule_write(self) -> None:
        """Something is due: have the courier call in the next turn of the loop."""
        if not self.is_scheduled and not self.is_blocked:
            self.is_scheduled = True
            self._scheduler.schedule(self)

    def write_due_frames(self, now: float, joined: JoinedFrames) -> None:
        """Send all that is due."""
        self.is_scheduled = False
        if self.is_blocked:
            return
        if wires := self._subscription.take() or (PING_ONLY if self.is_ping_due else ()):
            self.is_ping_due = False
            self.last_write_at = now
            self._counters.frames += len(wires)
            self.write_frames(wires, joined)
        if self._subscription.is_complete and not self.is_blocked:
            self._finish(there=True)

    def expire(self) -> None:
        """Have the client come again: to another server, perhaps, with new rights, over a way that is there still."""
        self._subscription.disconnect(CloseCode.AGED, "The connection has lived for long enough; the stream goes on")

    def on_ping_due(self) -> None:
        """Nothing has been sent for a time of silence: a `ping` is due, unless it is the client that reads nothing."""
        self.is_ping_due = True
        self.schedule_write()
        if self.is_blocked and self._subscription.is_complete:
            self._pings_while_closing += 1
            if self._pings_while_closing >= CLOSE_TIMEOUT_PINGS:
                self.abort()

    def unblock(self) -> None:
        """The client has read: go on."""
        if not self.finished.done():
            self.is_blocked = False
            self.schedule_write()

    def on_client_gone(self) -> None:
        """The client is gone."""
        self._finish(there=False)

    def _finish(self, *, there: bool) -> None:
        self.is_blocked = True
        if not self.finished.done():
            self.finished.set_result(there)

    @abstractmethod
    def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
        """Send frames. Where the client must read first, be `behind` until `catch_up`."""

    def unsent_bytes(self) -> int:
        """Return how many bytes wait in the connection, as far as that can be told."""
        return 0

    @abstractmethod
    def release_connection(self) -> None:
        """Let go of the connection."""

    def abort(self) -> None:
        """Nothing can be sent any more, for whatever reason."""
        self.on_client_gone()


class WriteScheduler:
    """Calls at all clients of an event loop that have something due, and at those that have been silent for too long.

    Args:
        loop: The event loop.
        silence: Seconds without a frame after which a `ping` is sent.
        age: Seconds after which a connection is closed, so that its client comes again; `None` lets it live.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: float, age: float | None = None) -> None:
        self.loop = loop
        self.counters = {transport: TransportCounters() for transport in TRANSPORTS}
        self._ping_interval = silence
        self._max_age = age
        self._written_callbacks: list[Callable[[], None]] = []
        self._due: list[FrameWriter] = []
        self._tick_seconds = silence / WHEEL_SLOTS
        self._wheel: list[set[FrameWriter]] = [set() for _ in range(WHEEL_SLOTS)]
        self._current_slot = 0
        self._writer_count = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def close_timeout(self) -> float:
        """How long a client may take to read what is due at the end."""
        return CLOSE_TIMEOUT_PINGS * self._ping_interval

    def schedule(self, delivery: FrameWriter) -> None:
        """Call at a client in the next turn of the loop."""
        if not self._due:
            self.loop.call_soon(self._write_due)
        self._due.append(delivery)

    def add(self, delivery: FrameWriter) -> None:
        """See to it that a client is never left in silence."""
        now = delivery.last_write_at = self.loop.time()
        if self._max_age is not None:
            delivery.expires_at = now + self._max_age * random.uniform(*AGE_JITTER)  # noqa: S311 # not for secrets
        self._place_on_wheel(delivery, now + self._ping_interval, now)
        self._writer_count += 1
        if self._timer is None:
            self._timer = self.loop.call_later(self._tick_seconds, self._tick)

    def remove(self, delivery: FrameWriter) -> None:
        """Forget a client. With the last one, the wheel stands still."""
        self._wheel[delivery.wheel_slot].discard(delivery)
        self._writer_count -= 1
        if not self._writer_count and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def call_when_written(self, call: Callable[[], None]) -> None:
        """Have something called when all that is due now has been written; not at all, where nothing is."""
        if self._due:
            self._written_callbacks.append(call)

    def statistics(self) -> dict[str, TransportStatistics]:
        """Tell, for each transport, what has been sent, and what waits in connections."""
        connections, unsent = Counter[str](), Counter[str]()
        for slot in self._wheel:
            for delivery in slot:
                connections[delivery.transport_name] += 1
                unsent[delivery.transport_name] += delivery.unsent_bytes()
        return {
            name: TransportStatistics(connections[name] + tally.waiting, tally.frames, tally.bytes, unsent[name])
            for name, tally in self.counters.items()
        }

    def _write_due(self) -> None:
        now, self._due = self._due[:MAX_WRITES_PER_TURN], self._due[MAX_WRITES_PER_TURN:]
        if self._due:
            self.loop.call_soon(self._write_due)
        time, joined = self.loop.time(), dict[tuple[object, ...], bytes]()
        for delivery in now:
            try:
                delivery.write_due_frames(time, joined)
            except Exception as error:  # noqa: BLE001 # the others are still to be called at
                log.debug("A client could not be sent its frames: %r", error)
                delivery.abort()
        if not self._due:
            after, self._written_callbacks = self._written_callbacks, []
            for call in after:
                call()

    def _tick(self) -> None:
        """Turn the wheel on by one slot."""
        self._timer = self.loop.call_later(self._tick_seconds, self._tick)
        self._current_slot = (self._current_slot + 1) % WHEEL_SLOTS
        here, self._wheel[self._current_slot] = self._wheel[self._current_slot], set()
        now = self.loop.time()
        soon = now + self._tick_seconds / 2
        for delivery in here:
            speak_at = delivery.last_write_at + self._ping_interval
            if delivery.expires_at <= soon:
                delivery.expires_at = math.inf
                delivery.expire()
            elif speak_at <= soon:
                delivery.on_ping_due()
                speak_at = now + self._ping_interval
            self._place_on_wheel(delivery, speak_at, now)

    def _place_on_wheel(self, delivery: FrameWriter, speak_at: float, now: float) -> None:
        """Have the wheel come by when a `ping` is due, unless the connection is too old before."""
        ticks = math.ceil((min(speak_at, delivery.expires_at) - now) / self._tick_seconds)
        delivery.wheel_slot = (self._current_slot + min(max(ticks, 1), WHEEL_SLOTS)) % WHEEL_SLOTS
        self._wheel[delivery.wheel_slot].add(delivery)


def _do_nothing() -> None:
    """Do nothing."""


class TransportStatistics(NamedTuple):
    """What one transport has sent, and what it has to send."""

    connections: int
    frames: int
    bytes: int
    unsent: int
    """Bytes that wait in connections, beside those that wait for their clients to read."""
