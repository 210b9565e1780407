"""Resume cursors: the epoch of a journal and a PostgreSQL snapshot."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import NamedTuple

from stream_server.errors import CursorError

_TXID = "[1-9][0-9]{0,19}"
_SNAPSHOT = re.compile(rf"({_TXID}):({_TXID}):((?:{_TXID}(?:,{_TXID})*)?)")
_TOKEN = re.compile(
    rf"(?P<epoch>[0-9a-f]{{1,32}})\.(?P<snapshot>{_SNAPSHOT.pattern})(?:~(?P<seq>[1-9][0-9]{{0,17}})-(?P<at>0|[1-9][0-9]{{0,16}}))?"
    r"(?:\.(?P<told>result|failure))?(?P<withheld>\.withheld)?(?P<ended>\.end)?"
)
_LAST_TXID = 2**64 - 1
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class JournalRow(NamedTuple):
    """A row of the journal, by what no other has in common with it, wherever numbers may be given out again."""

    seq: int
    at: int
    """When it was written, in microseconds since 1970."""

    @classmethod
    def from_time(cls, seq: int, at: datetime) -> JournalRow:
        """Return the row that was written at a time."""
        return cls(seq, (at - _UNIX_EPOCH) // _MICROSECOND)

    @property
    def written_at(self) -> datetime:
        """When it was written."""
        return _UNIX_EPOCH + self.at * _MICROSECOND


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """A place in one journal. Opaque to clients; `str()` gives its form on the wire."""

    epoch: str
    """Made when the journal was created, so that another or a restored database is noticed. Hexadecimal."""

    xmin: int
    """All transactions below this one had ended."""

    xmax: int
    """This transaction, and all above it, had not begun."""

    xip: tuple[int, ...] = ()
    """Transactions from `xmin` on that were in progress, ascending."""

    row: JournalRow | None = None
    """One of those that the transaction below `xmax` wrote: where it is missing, the journal has another history."""

    told: str | None = None
    """Which outcome the reader has been told: `result` or `failure`."""

    withheld: bool = False
    """Whether the reader may not have read any values."""

    ended: bool = False
    """Whether the reader has seen the `end` of its stream; it has no reason to come back."""

    @classmethod
    def from_snapshot(cls, epoch: str, snapshot: str) -> JournalPosition:
        """Make a cursor of a `pg_snapshot` in its text form, `xmin:xmax:xip,xip,...`.

        Raises:
            CursorError: The text is no snapshot.
        """
        match = _SNAPSHOT.fullmatch(snapshot)
        if match is None:
            raise CursorError(f"Not a snapshot: {snapshot[:80]!r}")
        xmin, xmax = int(match[1]), int(match[2])
        xip = tuple(int(txid) for txid in match[3].split(",") if txid)
        ascending = all(one < other for one, other in pairwise((xmin - 1, *xip, xmax)))
        if not ascending or xmin > xmax or xmax > _LAST_TXID:
            raise CursorError(f"Not a snapshot: {snapshot[:80]!r}")
        return cls(epoch, xmin, xmax, xip)

    @classmethod
    def parse(cls, text: str) -> JournalPosition:
        """Read a cursor as it stands on the wire.

        Raises:
            CursorError: The text was not made by `str(cursor)`.
        """
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise CursorError(f"Not a cursor: {text[:80]!r}")
        row = None if match["seq"] is None else JournalRow(int(match["seq"]), int(match["at"]))
        cursor = cls.from_snapshot(match["epoch"], match["snapshot"])
        withheld, ended = match["withheld"] is not None, match["ended"] is not None
        return replace(cursor, row=row, told=match["told"], withheld=withheld, ended=ended)

    @property
    def snapshot(self) -> str:
        """The snapshot in PostgreSQL's text form."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"

    def __str__(self) -> str:
        row = "" if self.row is None else f"~{self.row.seq}-{self.row.at}"
        told = f".{self.told}" if self.told else ""
        marks = f"{'.withheld' if self.withheld else ''}{'.end' if self.ended else ''}"
        return f"{self.epoch}.{self.snapshot}{row}{told}{marks}"

    def up_to(self, txid: int, row: JournalRow | None = None) -> JournalPosition:
        """Return the place that has seen nothing of what came after a transaction, which wrote a row."""
        xmax = min(self.xmax, txid + 1)
        xip = tuple(one for one in self.xip if one < xmax)
        return replace(self, xmin=min(self.xmin, xmax), xmax=xmax, xip=xip, row=row)

    def with_visible(self, txids: Collection[int]) -> JournalPosition:
        """Return the place that has seen these transactions too, and none between them that had not begun here."""
        xmax = max(self.xmax, *(txid + 1 for txid in txids)) if txids else self.xmax
        unseen = {*self.xip, *range(self.xmax, xmax)}.difference(txids)
        return replace(self, xmax=xmax, xip=tuple(sorted(unseen)))

    def of(self, told: str | None, *, ended: bool, withheld: bool = False) -> JournalPosition:
        """Return this place as that of a reader who has been told an outcome, without its values, or also the end."""
        return replace(self, told=told, withheld=withheld, ended=ended)

    def is_visible(self, txid: int) -> bool:
        """Tell whether a committed transaction was visible here (`pg_visible_in_snapshot`)."""
        if txid < self.xmin:
            return True
        if txid >= self.xmax:
            return False
        place = bisect_left(self.xip, txid)
        return place == len(self.xip) or self.xip[place] != txid

    def covers(self, other: JournalPosition) -> bool:
        """Tell whether all that was visible at `other` was visible here too, in the same journal."""
        if self.epoch != other.epoch or self.xmax < other.xmax:
            return False
        # Mostly there are none.
        return not (self.xip and any(other.is_visible(txid) for txid in self.xip))


class ResumePoint(NamedTuple):
    """From where on a client wants to hear every transition."""

    token: JournalPosition | None
    """Its place; `None` where what it gave is none."""

    before_creation: bool = False
    """Whether the run did not exist then: the client knows nothing of it."""

    @classmethod
    def parse(cls, text: str | None) -> ResumePoint | None:
        """Read what a client gave as its place; `None` where it gave nothing."""
        if text is None:
            return None
        try:
            return cls(JournalPosition.parse(text))
        except CursorError:
            return cls(None)

    @property
    def has_ended(self) -> bool:
        """Whether the client has seen the end of its stream."""
        return self.token is not None and self.token.ended
