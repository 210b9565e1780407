"""One client's place in a stream: what is due to it, and whether more can come.

Pure: the hub pushes, a transport takes and sends. What a client has not taken yet is bounded in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close, End, Failure, Reset, Result
from stream_server.protocol.wire import Wire


class SubscriptionStatistics(NamedTuple):
    """What `Subscription.statistics()` tells."""

    queued_frames: int
    queued_bytes: int


class Subscription:
    """Frames due to one client, oldest first.

    Args:
        limit: Bytes of JSON that may wait. Beyond it the connection is closed with `CloseCode.SLOW`.
    """

    __slots__ = ("_bytes", "_is_shared", "_limit", "_notify", "_queue", "closed", "is_complete", "knows_outcome")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: Sequence[Wire] = ()
        self._is_shared = True
        """Whether what is due is a sequence that others hold too."""

        self._bytes: int | None = 0
        """Bytes that wait; `None` where they need not be counted, since all that waits came at once."""

        self._notify: Callable[[], object] | None = None
        self.closed: Close | None = None
        """Why the connection ends before the stream does; `None` while it goes on."""

        self.knows_outcome = False
        """Whether the client has been told the outcome on an earlier connection; it is not told again."""

        self.is_complete = False
        """Whether the last frame of the stream, or of the connection, has been pushed."""

    @property
    def is_finished(self) -> bool:
        """Whether all has been taken and nothing more will come."""
        return self.is_complete and not self._queue

    def on_due(self, notify: Callable[[], object]) -> None:
        """Have `notify` called, in the pusher's turn, whenever something becomes due."""
        self._notify = notify
        if self._queue:
            notify()

    def push(self, wires: Iterable[Wire]) -> None:
        """Put frames in line; a list is kept as it is. After the stream's last one nothing is accepted any more."""
        if self.is_complete:
            return
        if self.knows_outcome or not isinstance(wires, list):
            wires = self._without_known_outcome(wires)
        if wires and isinstance(wires[-1].frame, End):
            self.is_complete = True
        if not self._queue:
            # Who had read everything is not slow, however large a frame is.
            self._queue, self._is_shared, self._bytes = wires, True, None
        elif self._append(wires) > self._limit and not self.is_complete:
            # What waits is dropped: the client resumes after the last frame that it has received.
            self._queue, self._bytes = (), 0
            self.disconnect(CloseCode.SLOW, "The client reads more slowly than its stream grows")
            return
        if self._notify is not None:
            self._notify()

    def prepend(self, wires: Iterable[Wire]) -> None:
        """Put frames before all that is due: what happened before it. They are not counted as waiting."""
        self._own_queue()[:0] = wires

    def disconnect(self, code: CloseCode, reason: str, *, retry_ms: int | None = None) -> None:
        """End the connection, after what is due, with a `close` frame that says why."""
        if self.is_complete:
            return
        self.is_complete = True
        self.closed = Close(code=int(code), reason=reason, reconnect=code.should_reconnect, retry_ms=retry_ms)
        self._own_queue().append(Wire(self.closed))
        if self._notify is not None:
            self._notify()

    def take(self) -> Sequence[Wire]:
        """Return all that is due, and forget it. Others may hold the same sequence."""
        wires, self._queue, self._bytes = self._queue, (), 0
        return wires

    def statistics(self) -> SubscriptionStatistics:
        """Tell how much waits."""
        return SubscriptionStatistics(len(self._queue), _size(self._queue) if self._bytes is None else self._bytes)

    def _append(self, wires: list[Wire]) -> int:
        """Put frames behind others that wait, and return how many bytes wait then."""
        self._own_queue().extend(wires)
        assert self._bytes is not None, "_own has counted them"
        self._bytes += _size(wires)
        return self._bytes

    def _own_queue(self) -> list[Wire]:
        """Return what is due as a list that belongs to this client alone, and have its bytes counted."""
        if self._bytes is None:
            self._bytes = _size(self._queue)
        if self._is_shared or not isinstance(self._queue, list):
            self._queue, self._is_shared = list(self._queue), False
        return self._queue

    def _without_known_outcome(self, wires: Iterable[Wire]) -> list[Wire]:
        """Leave out the outcome, if this client knows it, up to the frame that takes it back."""
        untold = []
        for wire in wires:
            if self.knows_outcome and isinstance(wire.frame, (Result, Failure, Reset)):
                self.knows_outcome = False
                if not isinstance(wire.frame, Reset):
                    continue
            untold.append(wire)
        return untold


def _size(wires: Iterable[Wire]) -> int:
    return sum(len(wire.json) for wire in wires)
