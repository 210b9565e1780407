"""How fast a tail reads: at each ring, or, under load, without waiting for any.

Pure: times are given, in seconds of any steady clock.
"""

from __future__ import annotations

from collections import deque

BUSY_TRANSACTIONS, BUSY_SECONDS = 50, 0.1
"""A tail stays awake from so many transactions in so many seconds on. Airflow rarely comes there; below that, a ring
for each transaction costs little, and brings it at once."""

QUIET_SECONDS = 0.05
"""An awake tail that has found nothing for so long lies down."""

PAUSE_SECONDS = (0.002, 0.02)
"""Bounds of the pause between two reads of an awake tail."""

PAUSE_RATIO = 2.0
"""So much longer than a read is the pause after it, that many tails do not crowd out those who write."""


class Pace:
    """What a tail has found of late."""

    def __init__(self) -> None:
        self._found: deque[tuple[float, int]] = deque()
        self._transactions = 0
        self._last = float("-inf")
        self._took = 0.0

    def note(self, now: float, transactions: int, took: float) -> None:
        """Note that a read has found rows of so many transactions, and how many seconds it took."""
        self._took = took
        if transactions:
            self._last = now
            self._found.append((now, transactions))
            self._transactions += transactions
        while self._found and self._found[0][0] <= now - BUSY_SECONDS:
            self._transactions -= self._found.popleft()[1]

    @property
    def busy(self) -> bool:
        """Whether reading on without a ring is worth it."""
        return self._transactions >= BUSY_TRANSACTIONS

    def quiet(self, now: float) -> bool:
        """Tell whether nothing has come for so long that the tail may lie down."""
        return now - self._last >= QUIET_SECONDS

    @property
    def pause(self) -> float:
        """Seconds to wait before the next read of an awake tail."""
        shortest, longest = PAUSE_SECONDS
        return min(max(shortest, PAUSE_RATIO * self._took), longest)
