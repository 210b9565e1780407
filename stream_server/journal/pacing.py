"""Adaptive polling: when a tail waits for NOTIFY, and when, under load, it reads without it.

Pure: the caller passes all times, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

BUSY_TRANSACTIONS, BUSY_SECONDS = 50, 0.1
"""A tail is busy from this number of transactions in this time. Airflow rarely reaches it. Below it, a NOTIFY for each
transaction costs little and is faster than polling."""

BUSY_QUEUE_LENGTH = 3.0
"""A tail is also busy if this number of transactions, on average over `BUSY_SECONDS`, have written and are not read
yet.

Transactions with a NOTIFY commit one after the other, each with its own flush. On a slow disk they wait for each other,
and their rate stays below `BUSY_TRANSACTIONS` for as long as they notify: the rate alone does not show the load."""

QUIET_TRANSACTIONS = 5
"""An active tail that has read fewer transactions in `BUSY_SECONDS` goes idle."""

PAUSE_BOUNDS = (0.005, 0.02)
"""Shortest and longest pause between two reads of an active tail, in seconds.

A read costs the server some 300 µs of CPU, and each row 18. A transition waits for at most two reads and a pause."""

PAUSE_RATIO = 1.0
"""Length of the pause relative to the read before it: many tails must not take the CPU from the writers. Reads are slow
on busy cores, where a larger ratio would add to the wait for them."""


class _ReadResult(NamedTuple):
    at: float
    transactions: int
    waited_seconds: float


class Pacing:
    """The results of the reads of the last `BUSY_SECONDS`."""

    def __init__(self) -> None:
        self._recent_reads: deque[_ReadResult] = deque()
        self._read_seconds = 0.0

    def record(self, now: float, waits: Collection[float], took: float) -> None:
        """Record a read.

        Args:
            now: Time of the read.
            waits: For each transaction with rows in the result, the seconds from the write of its last row to the read.
            took: Duration of the read in seconds.
        """
        self._read_seconds = took
        if waits:
            self._recent_reads.append(_ReadResult(now, len(waits), sum(min(wait, BUSY_SECONDS) for wait in waits)))
        self._drop_old_reads(now)

    @property
    def is_busy(self) -> bool:
        """Whether the tail should read without waiting for NOTIFY."""
        # Little's law: arrivals per second times the seconds that each waits is the average number that waits. A wait
        # counts as BUSY_SECONDS at most: a longer one may be the length of the transaction itself.
        waiting = sum(read.waited_seconds for read in self._recent_reads) / BUSY_SECONDS
        return waiting >= BUSY_QUEUE_LENGTH or self._transaction_count >= BUSY_TRANSACTIONS

    def is_quiet(self, now: float) -> bool:
        """Whether so few transactions were read that the tail may go idle."""
        self._drop_old_reads(now)
        return self._transaction_count < QUIET_TRANSACTIONS and not self.is_busy

    @property
    def pause_seconds(self) -> float:
        """Pause before the next read of an active tail."""
        shortest, longest = PAUSE_BOUNDS
        return min(max(shortest, PAUSE_RATIO * self._read_seconds), longest)

    @property
    def _transaction_count(self) -> int:
        return sum(read.transactions for read in self._recent_reads)

    def _drop_old_reads(self, now: float) -> None:
        while self._recent_reads and self._recent_reads[0].at <= now - BUSY_SECONDS:
            self._recent_reads.popleft()
