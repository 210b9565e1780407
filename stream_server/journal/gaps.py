"""When watchers must begin anew because the triggers could not write something down. Pure."""

from __future__ import annotations

from stream_server.protocol.cursor import Cursor


class Losses:
    """Says when watchers must begin anew because something is missing from the journal.

    What is missing may be part of a transaction that has not committed yet, and that no snapshot can show. So once is
    not enough: they begin anew once more when all transactions have ended that were in progress at the time.
    """

    def __init__(self) -> None:
        self._count = 0
        self._unsettled_below: int | None = None

    def begin(self, count: int) -> None:
        """Begin with the counter of the triggers as it stands: what was lost before is no news."""
        self._count = count
        self._unsettled_below = None

    def happened(self, cursor: Cursor) -> None:
        """Note that something is missing of which the counter knows nothing."""
        self._unsettled_below = cursor.xmax

    def noticed(self, count: int, cursor: Cursor) -> bool:
        """Tell whether watchers must begin anew, given the counter of the triggers and the cursor that read it."""
        before, self._count = self._count, count
        if count != before:
            self.happened(cursor)
            return True
        if self._unsettled_below is not None and cursor.xmin >= self._unsettled_below:
            self._unsettled_below = None
            return True
        return False
