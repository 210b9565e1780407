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

BUSY_QUEUE_LENGTH = 3.0
"""It also does where so many transactions at a time, on the average of that time, have written and are not read yet.

Those that ring commit one by one, each with a flush of its own. Where they come faster than that, they wait for each
other, and there are never as many in a second as without rings: their number alone does not tell."""

QUIET_TRANSACTIONS = 5
"""An awake tail that has found fewer in that time lies down."""

PAUSE_BOUNDS = (0.002, 0.02)
"""Bounds of the pause between two reads of an awake tail."""

PAUSE_RATIO = 2.0
"""So much longer than a read is the pause after it, that many tails do not crowd out those who write."""


class _ReadResult(NamedTuple):
    at: float
    transactions: int
    waited_seconds: float


class Pacing:
    """What a tail has found of late."""

    def __init__(self) -> None:
        self._recent_reads: deque[_ReadResult] = deque()
        self._read_seconds = 0.0

    def record(self, now: float, waits: Collection[float], took: float) -> None:
        """Note what a read has found.

        Args:
            now: When.
            waits: For each transaction of which it found rows, the seconds from the last of them being written to
                the read.
            took: How many seconds the read took.
        """
        self._read_seconds = took
        if waits:
            self._recent_reads.append(_ReadResult(now, len(waits), sum(min(wait, BUSY_SECONDS) for wait in waits)))
        self._drop_old_reads(now)

    @property
    def is_busy(self) -> bool:
        """Whether reading on without a ring is worth it."""
        # Little's law: how many come in a second, times the seconds that each waits, is how many wait at a time. A wait
        # counts no longer than what is looked at, since it may be the transaction's own length.
        waiting = sum(one.waited_seconds for one in self._recent_reads) / BUSY_SECONDS
        return waiting >= BUSY_QUEUE_LENGTH or self._transaction_count >= BUSY_TRANSACTIONS

    def is_quiet(self, now: float) -> bool:
        """Tell whether so little has come of late that the tail may lie down."""
        self._drop_old_reads(now)
        return self._transaction_count < QUIET_TRANSACTIONS and not self.is_busy

    @property
    def pause_seconds(self) -> float:
        """Seconds to wait before the next read of an awake tail."""
        shortest, longest = PAUSE_BOUNDS
        return min(max(shortest, PAUSE_RATIO * self._read_seconds), longest)

    @property
    def _transaction_count(self) -> int:
        return sum(one.transactions for one in self._recent_reads)

    def _drop_old_reads(self, now: float) -> None:
        while self._recent_reads and self._recent_reads[0].at <= now - BUSY_SECONDS:
            self._recent_reads.popleft()
