"""How fast a tail reads: at each ring, or, under load, without waiting for any.

Pure: times are given, in seconds of any steady clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

BUSY_TRANSACTIONS, BUSY_SECONDS = 50, 0.1
"""A tail stays awake from so many transactions in so many seconds on. Airflow rarely comes there; below that, a ring
for each transaction costs little, and brings it at once."""

BUSY_WAITING = 3.0
"""It also does where so many transactions at a time, on the average of that time, have written and are not read yet.

Those that ring commit one by one, each with a flush of its own. Where they come faster than that, they wait for each
other, and there are never as many in a second as without rings: their number alone does not tell."""

QUIET_TRANSACTIONS = 5
"""An awake tail that has found fewer in that time lies down."""

PAUSE_SECONDS = (0.002, 0.02)
"""Bounds of the pause between two reads of an awake tail."""

PAUSE_RATIO = 2.0
"""So much longer than a read is the pause after it, that many tails do not crowd out those who write."""


class _Found(NamedTuple):
    at: float
    transactions: int
    waited: float


class Pace:
    """What a tail has found of late."""

    def __init__(self) -> None:
        self._found: deque[_Found] = deque()
        self._took = 0.0

    def note(self, now: float, waits: Collection[float], took: float) -> None:
        """Note what a read has found.

        Args:
            now: When.
            waits: For each transaction of which it found rows, the seconds from the last of them being written to
                the read.
            took: How many seconds the read took.
        """
        self._took = took
        if waits:
            self._found.append(_Found(now, len(waits), sum(min(wait, BUSY_SECONDS) for wait in waits)))
        self._forget(now)

    @property
    def busy(self) -> bool:
        """Whether reading on without a ring is worth it."""
        # Little's law: how many come in a second, times the seconds that each waits, is how many wait at a time. A wait
        # counts no longer than what is looked at, since it may be the transaction's own length.
        waiting = sum(one.waited for one in self._found) / BUSY_SECONDS
        return waiting >= BUSY_WAITING or self._transactions >= BUSY_TRANSACTIONS

    def quiet(self, now: float) -> bool:
        """Tell whether so little has come of late that the tail may lie down."""
        self._forget(now)
        return self._transactions < QUIET_TRANSACTIONS and not self.busy

    @property
    def pause(self) -> float:
        """Seconds to wait before the next read of an awake tail."""
        shortest, longest = PAUSE_SECONDS
        return min(max(shortest, PAUSE_RATIO * self._took), longest)

    @property
    def _transactions(self) -> int:
        return sum(one.transactions for one in self._found)

    def _forget(self, now: float) -> None:
        while self._found and self._found[0].at <= now - BUSY_SECONDS:
            self._found.popleft()
