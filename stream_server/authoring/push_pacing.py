"""When the output of a task is pushed. Pure.

A push costs Airflow a request and a transaction, however many items it has. So there is a minimum time between two
pushes. An item waits least if a push begins when the item has just come. So a push waits for the next item around the
time at which it is due, and what it is too early or too late is made up for by the next one: on average, the pushes are
as many as without that. If items come irregularly, nothing would be gained, and a push begins when it is due. So it
does if only a new item begins a push: such a push is never early, and nothing makes up for the late ones.
"""

from __future__ import annotations

PUSH_INTERVAL_SECONDS = 0.04
"""Average of the shortest time from the end of a push to the start of the next one, by default."""

MAX_DELAY_FACTOR = 1.5
"""How much later than usual the next item may come before a push goes without it."""

SMOOTHING = 0.25
"""Weight of the newest time between two items."""

MAX_DEVIATION = 0.25
"""Deviation from the usual time between two items, as a part of it, up to which items come regularly."""


class PushPacing:
    """Times of items and pushes, in seconds of one monotonic clock.

    Args:
        interval: Like `PUSH_INTERVAL_SECONDS`.
        threaded: Whether a thread pushes, which can wait for the next item.
    """

    def __init__(self, interval: float = PUSH_INTERVAL_SECONDS, *, threaded: bool = True) -> None:
        self._interval = interval
        self._threaded = threaded
        self._due_at = float("-inf")
        self._came_at = float("-inf")
        self._usual_gap = interval
        self._deviation = 0.0

    def record_item(self, now: float) -> None:
        """Record that an item has come."""
        change = min(now - self._came_at, self._interval) - self._usual_gap
        self._usual_gap += SMOOTHING * change
        self._deviation += SMOOTHING * (abs(change) - self._deviation)
        self._came_at = now

    def record_push(self, began: float, ended: float) -> None:
        """Record a push."""
        largest = self._usual_gap / 2 if self._is_regular else 0.0
        early_by = min(max(self._due_at - began, -largest), largest)
        self._due_at = ended + self._interval + early_by

    def is_due(self, now: float) -> bool:
        """Whether a push may begin without regard to the next item."""
        return now >= self._due_at

    def next_push_at(self) -> float:
        """Return when to push the items that have come, unless another one comes before."""
        if not self._is_regular:
            return self._due_at
        earliest = self._due_at - self._usual_gap / 2
        if self._came_at >= earliest:
            return earliest
        return max(earliest, self._came_at + MAX_DELAY_FACTOR * self._usual_gap)

    @property
    def _is_regular(self) -> bool:
        return self._threaded and self._deviation <= MAX_DEVIATION * self._usual_gap
