"""The rows that were read last. After a reconnect, they must still be in the journal. Pure.

A failover to a standby that was behind, a restored backup, or a crash with `synchronous_commit = off` loses the last
commits. PostgreSQL assigns their transaction ids, and the ids of their rows, again. So a row is identified by its id,
its transaction and the time at which it was written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

MAX_RECENT_ROWS = 256
"""Maximum number of transactions with a stored row. What is lost is always the end of PostgreSQL's log. The last row
alone would not be enough, because transactions become visible in another order than they are logged."""


class RecentRow(NamedTuple):
    """The identity of a row of the journal."""

    seq: int
    txid: int
    at: datetime


class RecentRows:
    """One row of each of the last transactions that were read."""

    def __init__(self) -> None:
        self._rows: deque[RecentRow] = deque(maxlen=MAX_RECENT_ROWS)

    def start(self, newest: Sequence[RecentRow]) -> None:
        """Replace all rows by these, the youngest first: they count as read."""
        self._rows.clear()
        self._rows.extend(reversed(newest))

    def add(self, rows: Iterable[RecentRow]) -> None:
        """Add the rows of a batch: the last one of each transaction."""
        self._rows.extend({row.txid: row for row in rows}.values())

    def list_rows(self) -> list[RecentRow]:
        """Return the rows, the oldest first."""
        return list(self._rows)
