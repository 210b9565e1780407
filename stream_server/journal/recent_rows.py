"""What was told last, to see after a reconnect whether it is still there. Pure.

A failover to a standby that was behind, a restored backup, or a crash with `synchronous_commit = off` forgets the
transactions that were committed last. Their numbers, and the identities of their rows, are given out again: only the
row itself, with the time at which it was written, tells that it is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

MAX_RECENT_ROWS = 256
"""Transactions of which a row is remembered. What is forgotten is the end of PostgreSQL's log, so that the last one
would do, were it not for transactions that become visible in another order than they stand there."""


class RecentRow(NamedTuple):
    """A row of the journal, by what no other row has in common with it."""

    seq: int
    txid: int
    at: datetime


class RecentRows:
    """A row of each of the transactions that were told last."""

    def __init__(self) -> None:
        self._rows: deque[RecentRow] = deque(maxlen=MAX_RECENT_ROWS)

    def start(self, newest: Sequence[RecentRow]) -> None:
        """Begin with what is there already, the youngest first: it counts as told."""
        self._rows.clear()
        self._rows.extend(reversed(newest))

    def add(self, rows: Iterable[RecentRow]) -> None:
        """Note that a batch has been told."""
        self._rows.extend({row.txid: row for row in rows}.values())

    def list_rows(self) -> list[RecentRow]:
        """Return them, the oldest first."""
        return list(self._rows)
