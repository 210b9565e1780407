"""Positions in a journal, and the resume tokens that clients get as cursors."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias, cast

from stream_server.errors import CursorError

_TXID = "[1-9][0-9]{0,19}"
_SNAPSHOT = re.compile(rf"({_TXID}):({_TXID}):((?:{_TXID}(?:,{_TXID})*)?)")
_TOKEN = re.compile(
    rf"(?P<epoch>[0-9a-f]{{1,32}})\.(?P<snapshot>{_SNAPSHOT.pattern})(?:~(?P<seq>[1-9][0-9]{{0,17}})-(?P<at>0|[1-9][0-9]{{0,16}}))?"
    r"(?:\.(?P<outcome>result|failure))?(?P<redacted>\.withheld)?(?P<no_inputs>\.noinput)?(?P<ended>\.end)?"
)
_LAST_TXID = 2**64 - 1
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

SentOutcome: TypeAlias = Literal["result", "failure"]


class JournalRow(NamedTuple):
    """Identity of a journal row.

    The time belongs to it because a failover or a restored backup can give a `seq` out again.
    """

    seq: int
    at: int
    """When it was written, in microseconds since 1970."""

    @classmethod
    def from_time(cls, seq: int, at: datetime) -> JournalRow:
        return cls(seq, (at - _UNIX_EPOCH) // _MICROSECOND)

    @property
    def written_at(self) -> datetime:
        return _UNIX_EPOCH + self.at * _MICROSECOND


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """Which transactions a reader of the journal has seen: an epoch and a PostgreSQL snapshot.

    A transaction has been seen if it was visible in the snapshot (`pg_visible_in_snapshot`): it is below `xmin`, or
    below `xmax` and not in `xip`. Rows commit in another order than their `seq`, so no single number can express this.
    """

    epoch: str
    """Made when the journal was created, hexadecimal. Another database, or one that was restored, has another."""

    xmin: int
    """All transactions below this one had ended."""

    xmax: int
    """This transaction, and all above it, had not started."""

    xip: tuple[int, ...] = ()
    """Transactions from `xmin` on that were in progress, ascending."""

    row: JournalRow | None = None
    """A row of transaction `xmax - 1`. If the journal lacks it, its history is another one (`RunStore.is_foreign`)."""

    @classmethod
    def from_snapshot(cls, epoch: str, snapshot: str) -> JournalPosition:
        """Return the position of a `pg_snapshot` in text form, `xmin:xmax:xip,xip,...`.

        Raises:
            CursorError: The text is not a snapshot.
        """
        match = _SNAPSHOT.fullmatch(snapshot)
        if match is None:
            raise CursorError(f"Not a snapshot: {snapshot[:80]!r}")
        xmin, xmax = int(match[1]), int(match[2])
        xip = tuple(int(txid) for txid in match[3].split(",") if txid)
        is_ascending = all(one < other for one, other in pairwise((xmin - 1, *xip, xmax)))
        if not is_ascending or xmin > xmax or xmax > _LAST_TXID:
            raise CursorError(f"Not a snapshot: {snapshot[:80]!r}")
        return cls(epoch, xmin, xmax, xip)

    @property
    def snapshot(self) -> str:
        """The snapshot in PostgreSQL's text form."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"

    def up_to(self, txid: int, row: JournalRow | None = None) -> JournalPosition:
        """Return the position that has not seen any transaction above `txid`.

        Args:
            txid: A transaction.
            row: A row that it wrote.
        """
        xmax = min(self.xmax, txid + 1)
        xip = tuple(one for one in self.xip if one < xmax)
        return replace(self, xmin=min(self.xmin, xmax), xmax=xmax, xip=xip, row=row)

    def with_visible(self, txids: Collection[int]) -> JournalPosition:
        """Return the position that has seen these transactions too.

        Transactions between `xmax` and the highest of them that are not among them count as in progress.
        """
        xmax = max(self.xmax, *(txid + 1 for txid in txids)) if txids else self.xmax
        unseen = {*self.xip, *range(self.xmax, xmax)}.difference(txids)
        return replace(self, xmax=xmax, xip=tuple(sorted(unseen)))

    def is_visible(self, txid: int) -> bool:
        """Whether a committed transaction had been seen here (`pg_visible_in_snapshot`)."""
        if txid < self.xmin:
            return True
        if txid >= self.xmax:
            return False
        index = bisect_left(self.xip, txid)
        return index == len(self.xip) or self.xip[index] != txid

    def covers(self, other: JournalPosition) -> bool:
        """Whether all that had been seen at `other` had been seen here too, in the same journal."""
        if self.epoch != other.epoch or self.xmax < other.xmax:
            return False
        # `xip` is empty most of the time.
        return not (self.xip and any(other.is_visible(txid) for txid in self.xip))


class ResumeToken(NamedTuple):
    """What one client has received: a journal position, and what was sent of the outcome.

    Clients get it as an opaque cursor; `str()` is its text form.
    """

    position: JournalPosition
    sent_outcome: SentOutcome | None = None
    lacks_values: bool = False
    """Whether values were left out because the client could not read them."""

    lacks_inputs: bool = False
    """Whether requests for human input and their answers were left out because the client could not read them."""

    has_ended: bool = False
    """Whether the client has received the `end` of its stream, so that there is nothing to resume."""

    @classmethod
    def parse(cls, text: str) -> ResumeToken:
        """Return the token of a cursor.

        Raises:
            CursorError: The text was not made by `str(token)`.
        """
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise CursorError(f"Not a cursor: {text[:80]!r}")
        row = None if match["seq"] is None else JournalRow(int(match["seq"]), int(match["at"]))
        position = replace(JournalPosition.from_snapshot(match["epoch"], match["snapshot"]), row=row)
        outcome = cast("SentOutcome | None", match["outcome"])
        redacted, no_inputs, ended = (match[name] is not None for name in ("redacted", "no_inputs", "ended"))
        return cls(position, outcome, redacted, no_inputs, ended)

    def __str__(self) -> str:
        position, row = self.position, self.position.row
        return "".join(
            (
                f"{position.epoch}.{position.snapshot}",
                "" if row is None else f"~{row.seq}-{row.at}",
                f".{self.sent_outcome}" if self.sent_outcome else "",
                ".withheld" if self.lacks_values else "",
                ".noinput" if self.lacks_inputs else "",
                ".end" if self.has_ended else "",
            )
        )


class ResumePoint(NamedTuple):
    """Where a client wants its stream to continue."""

    token: ResumeToken | None
    """`None` if the cursor that the client sent is damaged."""

    before_creation: bool = False
    """Whether the run did not exist at that position, so that the client has no snapshot of it."""

    @classmethod
    def parse(cls, text: str | None) -> ResumePoint | None:
        """Return the resume point of a cursor; `None` if the client sent none."""
        if text is None:
            return None
        try:
            return cls(ResumeToken.parse(text))
        except CursorError:
            return cls(None)

    @property
    def has_ended(self) -> bool:
        """Whether the client has received the `end` of its stream."""
        return self.token is not None and self.token.has_ended
