"""Scheduling of writes, heartbeats and connection ages, for all clients of an event loop.

A client has no task and no timer of its own. A subscription reports that frames are due; the `WriteScheduler` calls the
client's `FrameWriter` in the next turn of the loop, so that all frames of one turn go out in one write. A timer wheel
finds the clients to which nothing was sent for a ping interval, and the connections that have reached their age.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeAlias

from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close
from stream_server.protocol.wire import PING, Framing, Wire

log = logging.getLogger(__name__)

PING_ONLY = (PING,)

MAX_WRITES_PER_TURN = 500
"""Writes after which the event loop runs its other callbacks, before it continues with the remaining clients."""

TICKS_PER_PING = 16
MAX_TICK_SECONDS = 1.0
"""Ticks of the timer wheel in a ping interval, and the longest. A `ping` is up to one tick late."""

MAX_WHEEL_SLOTS = 64

TRANSPORTS = ("sse", "ndjson", "websocket", "multiplex", "openai", "ai_sdk", "ag_ui", "mcp", "result", "wait")
"""Transports, as metrics label them. Requests to the last two wait for one response. The last six have no writer."""

AGE_JITTER = (0.9, 1.0)
"""Bounds of the random share of the maximum age, so that connections opened at once are not all closed at once."""

CLOSE_TIMEOUT_PINGS = 20
"""Ping intervals in which a client must read what is due when its connection ends. Without this limit, a client that
reads a byte now and then keeps its connection for days."""

JoinedFrames: TypeAlias = dict[Framing, tuple[Sequence[Wire], bytes]]
"""By framing, the frames that were joined last and their bytes.

The clients of a run are written to one after the other, and are due the same frames: one entry serves them all.
`make bench-fanout` shows it in bursts: joining 16 frames costs as much as half of their writing.
"""


class TransportCounters:
    """What one transport has sent."""

    __slots__ = ("bytes", "frames", "waiting", "writers")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        """Bytes of framed frames."""

        self.writers = 0
        """Writers that were added and not removed."""

        self.waiting = 0
        """Requests that wait for one response and are sent no frames."""

    @contextmanager
    def count_waiting(self) -> Iterator[None]:
        """Count a waiting request while the context is entered."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class FrameSource(Protocol):
    """Where the frames of a writer come from: a `Subscription`, or the `MultiplexQueue` of several."""

    @property
    def is_complete(self) -> bool:
        """Whether the last frame of the connection is due or was taken."""

    @property
    def closed(self) -> Close | None:
        """Why the connection ends before the stream does."""

    def on_due(self, notify: Callable[[], object]) -> None:
        """Call `notify` whenever a frame becomes due, from now on."""

    def take(self) -> Sequence[Wire]:
        """Return and remove all frames that are due."""

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection: a `close` frame follows the frames that are due."""


class FrameWriter(ABC):
    """Writes the frames of one client to its connection.

    Args:
        subscription: Where the frames come from.
        scheduler: The scheduler of the event loop.
        transport: One of `TRANSPORTS`.
        ping_interval: Seconds without a write after which a `ping` is sent, if shorter than that of the scheduler.
    """

    # There is one for each client: no `__dict__`.
    __slots__ = (
        "_pings_while_closing",
        "_scheduler",
        "_subscription",
        "counters",
        "expires_at",
        "finished",
        "is_blocked",
        "is_ping_due",
        "is_scheduled",
        "last_write_at",
        "ping_interval",
        "transport_name",
        "wheel_slot",
    )

    def __init__(
        self, subscription: FrameSource, scheduler: WriteScheduler, transport: str, ping_interval: float | None = None
    ) -> None:
        self._subscription = subscription
        self.ping_interval = min(ping_interval or scheduler.ping_interval, scheduler.ping_interval)
        self._scheduler = scheduler
        self.transport_name = transport
        self.counters = scheduler.counters[transport]
        self.finished: asyncio.Future[bool] = scheduler.loop.create_future()
        """Done when nothing more is written: `True` if all frames were, `False` if the client is gone."""

        # Back-pressure. While it is set, frames stay in the subscription, which is bounded in bytes: a client that
        # reads too slowly is closed there. The connection sets it when its write buffer is above the high-water mark.
        self.is_blocked = False
        """Whether nothing can be written: the client must read first, or the writer has finished."""

        self.is_scheduled = False
        self.is_ping_due = False
        """Whether the next write is a `ping`, if no frame is due."""

        self.last_write_at = 0.0
        self.expires_at = math.inf
        """Loop time at which the connection has reached its age."""

        self.wheel_slot = 0
        self._pings_while_closing = 0

    @contextmanager
    def run(self) -> Iterator[asyncio.Future[bool]]:
        """Write frames while the context is entered. Yields `finished`."""
        self.start()
        try:
            yield self.finished
        finally:
            self.stop()

    def start(self) -> None:
        """Start to write. Frames that are due already are written before this returns."""
        self._scheduler.add(self)
        self.is_scheduled = True
        self.write_due_frames(self._scheduler.loop.time(), {})
        self._subscription.on_due(self.schedule_write)

    def stop(self) -> None:
        """Stop writing, and release the connection."""
        self._subscription.on_due(_do_nothing)
        self.on_client_gone()
        self._scheduler.remove(self)
        self.release_connection()

    def schedule_write(self) -> None:
        """Write in the next turn of the loop, unless that is scheduled or nothing can be written."""
        if not self.is_scheduled and not self.is_blocked:
            self.is_scheduled = True
            self._scheduler.schedule(self)

    def write_due_frames(self, now: float, joined: JoinedFrames) -> None:
        """Write all frames that are due, or else the `ping` that is due; finish after the last frame."""
        self.is_scheduled = False
        if self.is_blocked:
            return
        if wires := self._subscription.take() or (PING_ONLY if self.is_ping_due else ()):
            self.is_ping_due = False
            self.last_write_at = now
            self.counters.frames += len(wires)
            self._scheduler.unsent_writers.add(self)
            self.write_frames(wires, joined)
        if self._subscription.is_complete and not self.is_blocked:
            self._finish(is_client_there=True)

    def expire(self) -> None:
        """Close the connection because of its age. The client reconnects and resumes the stream."""
        self._subscription.disconnect(CloseCode.AGED, "The connection has lived for long enough; the stream goes on")

    def on_ping_due(self) -> None:
        """Send a `ping`, because nothing was written for a ping interval.

        A client that is blocked gets none. If its connection is ending, it is aborted after `CLOSE_TIMEOUT_PINGS`.
        """
        self.is_ping_due = True
        self.schedule_write()
        if self.is_blocked and self._subscription.is_complete:
            self._pings_while_closing += 1
            if self._pings_while_closing >= CLOSE_TIMEOUT_PINGS:
                self.abort()

    def unblock(self) -> None:
        """Continue to write: the client has read."""
        if not self.finished.done():
            self.is_blocked = False
            self.schedule_write()

    def on_client_gone(self) -> None:
        """Finish: the client is gone."""
        self._finish(is_client_there=False)

    def _finish(self, *, is_client_there: bool) -> None:
        self.is_blocked = True
        if not self.finished.done():
            self.finished.set_result(is_client_there)

    @abstractmethod
    def write_frames(self, wires: Sequence[Wire], joined: JoinedFrames) -> None:
        """Write frames. If the client must read before more can be written, set `is_blocked`, and `unblock` later."""

    def unsent_bytes(self) -> int:
        """Return how many bytes wait in the connection; 0 where that is unknown."""
        return 0

    @abstractmethod
    def release_connection(self) -> None:
        """Drop the references between connection and writer."""

    def abort(self) -> None:
        """Finish: nothing more can be written."""
        self.on_client_gone()


class WriteScheduler:
    """Calls the writers of an event loop that have frames due, a `ping` due, or an aged connection.

    Args:
        loop: The event loop.
        ping_interval: Seconds without a write after which a `ping` is sent.
        max_age: Seconds after which a connection is closed; `None` for no limit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ping_interval: float, max_age: float | None = None) -> None:
        self.loop = loop
        self.counters = {transport: TransportCounters() for transport in TRANSPORTS}
        self.endings = TaskSet("end of a stream")
        """End the streams whose request has ended before."""

        self.ping_interval = ping_interval
        self._max_age = max_age
        self._written_callbacks: list[Callable[[], None]] = []
        self._due: list[FrameWriter] = []
        # The wheel: each slot has the writers to look at when the timer reaches it. A write does not move its writer:
        # when the timer reaches the writer, it goes into the slot that follows from its last write.
        self._tick_seconds = min(ping_interval / TICKS_PER_PING, MAX_TICK_SECONDS)
        slot_count = min(math.ceil(ping_interval / self._tick_seconds), MAX_WHEEL_SLOTS)
        self._wheel: list[set[FrameWriter]] = [set() for _ in range(slot_count)]
        self._current_slot = 0
        self._writer_count = 0
        self.unsent_writers: set[FrameWriter] = set()
        """Writers that have written since the last look at the statistics, or had unsent bytes then."""

        self._timer: asyncio.TimerHandle | None = None

    @property
    def close_timeout(self) -> float:
        """Seconds in which a client must read what is due when its connection ends."""
        return CLOSE_TIMEOUT_PINGS * self.ping_interval

    def schedule(self, writer: FrameWriter) -> None:
        """Call a writer in the next turn of the loop."""
        if not self._due:
            self.loop.call_soon(self._write_due)
        self._due.append(writer)

    def add(self, writer: FrameWriter) -> None:
        """Send pings through a writer, and close its connection when it has reached its age."""
        now = writer.last_write_at = self.loop.time()
        if self._max_age is not None:
            writer.expires_at = now + self._max_age * random.uniform(*AGE_JITTER)  # noqa: S311 # not for secrets
        self._place_on_wheel(writer, now + writer.ping_interval, now)
        self._writer_count += 1
        writer.counters.writers += 1
        if self._timer is None:
            self._timer = self.loop.call_later(self._tick_seconds, self._tick)

    def remove(self, writer: FrameWriter) -> None:
        """Forget a writer. The timer stops with the last one."""
        self._wheel[writer.wheel_slot].discard(writer)
        self._writer_count -= 1
        writer.counters.writers -= 1
        self.unsent_writers.discard(writer)
        if not self._writer_count and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def call_when_written(self, callback: Callable[[], None]) -> None:
        """Call back when all frames that are due now were written; never, if none are."""
        if self._due:
            self._written_callbacks.append(callback)

    def statistics(self) -> dict[str, TransportStatistics]:
        """Return what each transport has sent, and what its connections have not sent yet."""
        # All others have sent everything, and have written nothing since.
        self.unsent_writers = {writer for writer in self.unsent_writers if writer.unsent_bytes()}
        unsent = Counter[str]()
        for writer in self.unsent_writers:
            unsent[writer.transport_name] += writer.unsent_bytes()
        return {
            name: TransportStatistics(
                counters.writers + counters.waiting, counters.frames, counters.bytes, unsent[name]
            )
            for name, counters in self.counters.items()
        }

    def _write_due(self) -> None:
        writers, self._due = self._due[:MAX_WRITES_PER_TURN], self._due[MAX_WRITES_PER_TURN:]
        if self._due:
            self.loop.call_soon(self._write_due)
        now, joined = self.loop.time(), JoinedFrames()
        for writer in writers:
            try:
                writer.write_due_frames(now, joined)
            except Exception as error:  # noqa: BLE001 # the other clients must get their frames
                log.debug("Writing frames to a client failed: %r", error)
                writer.abort()
        if not self._due:
            callbacks, self._written_callbacks = self._written_callbacks, []
            for callback in callbacks:
                callback()

    def _tick(self) -> None:
        """Advance the wheel by one slot, and look at the writers there."""
        self._timer = self.loop.call_later(self._tick_seconds, self._tick)
        self._current_slot = (self._current_slot + 1) % len(self._wheel)
        writers, self._wheel[self._current_slot] = self._wheel[self._current_slot], set()
        now = self.loop.time()
        # A timer may fire a little early or late; what is due nearer to this tick than to the next is due now.
        due_before = now + self._tick_seconds / 2
        for writer in writers:
            ping_at = writer.last_write_at + writer.ping_interval
            if writer.expires_at <= due_before:
                writer.expires_at = math.inf
                writer.expire()
            elif ping_at <= due_before:
                writer.on_ping_due()
                ping_at = now + writer.ping_interval
            self._place_on_wheel(writer, ping_at, now)

    def _place_on_wheel(self, writer: FrameWriter, ping_at: float, now: float) -> None:
        """Put a writer into the slot of its next `ping`, or of its age if that comes first."""
        ticks = math.ceil((min(ping_at, writer.expires_at) - now) / self._tick_seconds)
        # What is due beyond one turn of the wheel is met by a later visit.
        writer.wheel_slot = (self._current_slot + min(max(ticks, 1), len(self._wheel))) % len(self._wheel)
        self._wheel[writer.wheel_slot].add(writer)


def _do_nothing() -> None:
    pass


class TransportStatistics(NamedTuple):
    """What one transport has sent, and has still to send."""

    connections: int
    frames: int
    bytes: int
    unsent: int
    """Bytes that wait in connections, without the frames that wait in subscriptions."""
