"""When watchers must begin anew because the triggers could not write something down. Pure."""

from __future__ import annotations

from stream_server.protocol.cursor import JournalPosition


class GapDetector:
    """Says when watchers must begin anew because something is missing from the journal.

    What is missing may be part of a transaction that has not committed yet, and that no snapshot can show. So once is
    not enough: they begin anew once more when all transactions have ended that were in progress at the time.
    """

    def __init__(self) -> None:
        self._count = 0
        self._recheck_from_xmin: int | None = None

    def start(self, count: int) -> None:
        """Begin with the counter of the triggers as it stands: what was lost before is no news."""
        self._count = count
        self._recheck_from_xmin = None

    def record_gap(self, cursor: JournalPosition) -> None:
        """Note that something is missing of which the counter knows nothing."""
        self._recheck_from_xmin = cursor.xmax

    def check(self, count: int, cursor: JournalPosition) -> bool:
        """Tell whether watchers must begin anew, given the counter of the triggers and the cursor that read it."""
        before, self._count = self._count, count
        if count != before:
            self.record_gap(cursor)
            return True
        if self._recheck_from_xmin is not None and cursor.xmin >= self._recheck_from_xmin:
            self._recheck_from_xmin = None
            return True
        return False
