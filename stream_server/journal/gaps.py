"""When clients must resync because rows are missing from the journal. Pure."""

from __future__ import annotations

from stream_server.protocol.cursor import JournalPosition


class GapDetector:
    """Decides when clients must resync because the triggers dropped a write.

    The counter of dropped writes is a sequence, so it changes at once, while the transaction that lost the write may
    still be in progress: a resync at that moment reads the state before its commit. So a gap causes two resyncs: one at
    once, and one when all transactions that were in progress at the time have ended.
    """

    def __init__(self) -> None:
        self._count = 0
        self._recheck_at_xmin: int | None = None

    def start(self, count: int) -> None:
        """Start with the current counter of dropped writes: earlier gaps need no resync."""
        self._count = count
        self._recheck_at_xmin = None

    def record_gap(self, snapshot: JournalPosition) -> None:
        """Record a gap that the counter does not show. The caller resyncs; `check` requests the second resync."""
        self._recheck_at_xmin = snapshot.xmax

    def check(self, count: int, snapshot: JournalPosition) -> bool:
        """Whether clients must resync, given the counter of dropped writes and the snapshot in which it was read."""
        last_count, self._count = self._count, count
        if count != last_count:
            self.record_gap(snapshot)
            return True
        if self._recheck_at_xmin is not None and snapshot.xmin >= self._recheck_at_xmin:
            self._recheck_at_xmin = None
            return True
        return False
