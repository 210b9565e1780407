"""The frames that are queued for one client, and everything that is held for it.

Pure: the hub pushes, a connection takes and sends. What a client has not taken yet is bounded in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close, End
from stream_server.protocol.wire import Wire


class SubscriptionStatistics(NamedTuple):
    """What is queued for one client."""

    queued_frames: int
    queued_bytes: int


class QueueTotals:
    """What is queued for all clients of a process: sums that each subscription keeps up to date."""

    __slots__ = ("_last", "_last_size", "bytes", "frames")

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        # The frames that were measured last: the subscriptions of a group get the same list, one after the other.
        self._last: Sequence[Wire] = ()
        self._last_size = 0

    def measure(self, wires: Sequence[Wire]) -> int:
        """Return the size of frames in bytes of JSON."""
        if wires is not self._last:
            self._last, self._last_size = wires, sum([len(wire.json) for wire in wires])
        return self._last_size

    def add(self, frames: int, size: int) -> None:
        """Count frames that were queued, or, if negative, taken."""
        self.frames += frames
        self.bytes += size
        if not self.frames:
            # Otherwise the frames that were sent last would stay in memory.
            self._last, self._last_size = (), 0


class Subscription:
    """Frames for one client, oldest first, from `Hub.subscribe` until `close`.

    Args:
        limit: Bytes of JSON that may be queued. Beyond it the client is disconnected with `CloseCode.SLOW`.
        totals: The sums that it counts in.
    """

    # There is one of these for each stream: an attribute more is 8 bytes more for every client (`make bench-fanout`).
    __slots__ = (
        "_bytes",
        "_is_shared",
        "_limit",
        "_notify",
        "_on_close",
        "_queue",
        "_totals",
        "closed",
        "is_complete",
        "tracker",
    )

    def __init__(self, limit: int, totals: QueueTotals | None = None) -> None:
        self._limit = limit
        self._totals = totals or QueueTotals()
        # In most cases the list that was pushed, which all subscriptions of a group share; copied before it is changed.
        self._queue: Sequence[Wire] = ()
        self._is_shared = True
        self._bytes = 0
        self._notify: Callable[[], object] | None = None
        # A tuple, because an empty list takes 56 bytes.
        self._on_close: tuple[Callable[[], object], ...] = ()
        self.closed: Close | None = None
        """Why the connection ends before the stream does; `None` while it goes on."""

        self.tracker: OutcomeTracker | None = None
        """What the group of the subscription was sent of the outcome; `None` in a stream of many runs."""

        self.is_complete = False
        """Whether the last frame of the stream, or of the connection, has been pushed."""

    @property
    def is_finished(self) -> bool:
        """Whether everything has been taken and nothing more will come."""
        return self.is_complete and not self._queue

    def on_due(self, notify: Callable[[], object]) -> None:
        """Call `notify` whenever frames become due, in the call that pushes them; at once if some are due already."""
        self._notify = notify
        if self._queue:
            notify()

    def on_close(self, release: Callable[[], object]) -> None:
        """Call `release` when the subscription is closed, before what was registered earlier."""
        self._on_close = (*self._on_close, release)

    def push(self, wires: Iterable[Wire]) -> None:
        """Queue frames. A list is kept as it is, so it must not change. After the last frame nothing is accepted."""
        if self.is_complete:
            return
        if not isinstance(wires, list):
            wires = list(wires)
        if wires and isinstance(wires[-1].frame, End):
            self.is_complete = True
        size = self._totals.measure(wires)
        if not self._queue:
            # A client that has taken everything is not slow, however large the next frames are.
            self._queue, self._is_shared = wires, True
            self._count(len(wires), size)
        else:
            self._own_queue().extend(wires)
            self._count(len(wires), size)
            if self._bytes > self._limit and not self.is_complete:
                # The queue is dropped: the client resumes after the last frame that it has received.
                self.take()
                self.disconnect(CloseCode.SLOW, "The client reads more slowly than its stream grows")
                return
        if self._notify is not None:
            self._notify()

    def prepend(self, wires: Iterable[Wire]) -> None:
        """Queue frames in front of all others, whatever their size: a replay of what happened earlier."""
        front = list(wires)
        self._own_queue()[:0] = front
        self._count(len(front), self._totals.measure(front))

    def disconnect(self, code: CloseCode, reason: str, *, retry_ms: int | None = None) -> None:
        """End the connection, after what is queued, with a `close` frame."""
        if self.is_complete:
            return
        self.is_complete = True
        self.closed = Close(code=int(code), reason=reason, reconnect=code.should_reconnect, retry_ms=retry_ms)
        last = [Wire(self.closed)]
        self._own_queue().extend(last)
        self._count(1, self._totals.measure(last))
        if self._notify is not None:
            self._notify()

    def take(self) -> Sequence[Wire]:
        """Return all queued frames, and empty the queue. The result may be shared, so it must not change."""
        wires, self._queue = self._queue, ()
        self._count(-len(wires), -self._bytes)
        return wires

    def close(self) -> None:
        """Leave the hub, and release everything that is held for the client. A second call does nothing."""
        self.take()
        releases, self._on_close = self._on_close, ()
        for release in reversed(releases):
            release()

    def statistics(self) -> SubscriptionStatistics:
        """Return how much is queued."""
        return SubscriptionStatistics(len(self._queue), self._bytes)

    def _count(self, frames: int, size: int) -> None:
        self._bytes += size
        self._totals.add(frames, size)

    def _own_queue(self) -> list[Wire]:
        """Return the queue as a list that no other subscription shares."""
        if self._is_shared or not isinstance(self._queue, list):
            self._queue, self._is_shared = list(self._queue), False
        return self._queue
