"""The rows that were written, the rows that each reader received, and their comparison."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from stream_server.domain.transition import Transition, TransitionKind
from stream_server.protocol.cursor import JournalPosition

InstanceKey = tuple[str, int]
"""A task instance: its run, and its map index."""

Token = tuple[InstanceKey, int]
"""One change of a task instance: every UPDATE of the schedule sets a try number of its own."""


class Row(NamedTuple):
    """The fields of a transition that are compared."""

    seq: int
    run_id: str
    map_index: int
    try_number: int
    state: str | None
    previous_state: str | None

    @property
    def instance(self) -> InstanceKey:
        return self.run_id, self.map_index

    @property
    def token(self) -> Token:
        return self.instance, self.try_number


def row_of(transition: Transition) -> Row | None:
    """Return the compared fields of a transition of a task, else `None`."""
    if transition.kind is not TransitionKind.TASK:
        return None
    assert transition.map_index is not None
    assert transition.try_number is not None
    return Row(
        transition.seq,
        transition.run_id,
        transition.map_index,
        transition.try_number,
        transition.state,
        transition.previous_state,
    )


class Written(NamedTuple):
    """A row of the journal."""

    row: Row
    txid: int


class TransactionEnd(Enum):
    """How a transaction ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    IN_DOUBT = "in doubt"
    """The connection was lost during the COMMIT."""


@dataclass(eq=False)
class Transaction:
    """One transaction, as its writer knows it."""

    began: float
    """When its BEGIN was about to be sent (`time.monotonic`)."""

    ended: float = math.inf
    """When its COMMIT had been acknowledged."""

    fate: TransactionEnd = TransactionEnd.ROLLED_BACK
    txid: int = 0
    tokens: list[Token] = field(default_factory=list)

    def committed(self) -> None:
        self.fate, self.ended = TransactionEnd.COMMITTED, time.monotonic()


class Ledger:
    """All transactions of all writers."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self.counts: Counter[str] = Counter()
        """Counts of events in the schedule, for the figures."""

        self._numbers = itertools.count(1)

    def begin(self) -> Transaction:
        transaction = Transaction(began=time.monotonic())
        self.transactions.append(transaction)
        return transaction

    def next_number(self) -> int:
        """Return a unique try number."""
        return next(self._numbers)

    @property
    def out_of_order(self) -> int:
        """Return how many transactions were committed after one with a higher id."""
        committed = sorted(
            (one for one in self.transactions if one.fate is TransactionEnd.COMMITTED), key=lambda one: one.ended
        )
        highest = itertools.accumulate((one.txid for one in committed), max, initial=0)
        return sum(one.txid < before for one, before in zip(committed, highest, strict=False))


class Resync(NamedTuple):
    """A reader had to discard its state and to read it again."""

    after: int
    """Number of rows that it had received."""

    before: JournalPosition | None
    """Position before the resync."""

    cursor: JournalPosition
    """Position after the resync."""

    why: str

    newest: int
    """Highest row id that it had received."""

    def covers(self, one: Written) -> bool:
        """Whether a row lies in the gap. Transaction ids can be reused after a crash, row ids cannot."""
        received = self.before is not None and self.before.is_visible(one.txid) and one.row.seq <= self.newest
        return self.cursor.is_visible(one.txid) and not received


class ReaderLog:
    """All rows and resyncs that one reader received, over all its restarts.

    Args:
        name: For messages.
        run_id: The run that it follows, or `None` for all.
    """

    def __init__(self, name: str, run_id: str | None = None) -> None:
        self.name = name
        self.run_id = run_id
        self.rows: list[Row] = []
        self.cursor: JournalPosition | None = None
        """Position of the reader."""

        self.reads = 0
        """Number of batches, also empty ones."""

        self.restarts: list[Resync] = []

    def add(self, rows: Iterable[Row], cursor: JournalPosition) -> None:
        self.rows.extend(rows)
        self.reads += 1
        self.cursor = cursor

    def record_resync(self, cursor: JournalPosition, reason: str) -> None:
        newest = max((row.seq for row in self.rows), default=0)
        self.restarts.append(Resync(len(self.rows), self.cursor, cursor, reason, newest))
        self.cursor = cursor

    def expected(self, journal: Sequence[Written]) -> list[Written]:
        """Return the tokens of all rows that the reader follows."""
        return [one for one in journal if self.run_id in {None, one.row.run_id}]

    def missing(self, journal: Sequence[Written]) -> list[Written]:
        """Return the tokens that the reader did not receive."""
        received = {row.seq for row in self.rows}
        return [one for one in self.expected(journal) if one.row.seq not in received]

    def is_covered(self, one: Written) -> bool:
        """Whether a resync covers a row."""
        return any(restart.covers(one) for restart in self.restarts)

    def complete(self, journal: Sequence[Written]) -> bool:
        return all(map(self.is_covered, self.missing(journal)))


@dataclass
class Evaluation:
    """Errors as texts, and how many missing rows resyncs cover."""

    misses: list[str] = field(default_factory=list)
    excused: int = 0
    """Rows that a reader did not receive, but that a resync covers."""


def evaluate(ledger: Ledger, journal: Sequence[Written], lines: Sequence[ReaderLog]) -> Evaluation:
    """Compare the written rows with the journal, and the journal with the rows of each reader."""
    verdict = Evaluation()
    writers = {token: one for one in ledger.transactions for token in one.tokens}
    verdict.misses += _check_journal(ledger, [one.row for one in journal], writers)
    for line in lines:
        verdict.misses += [f"{line.name}: {miss}" for miss in _check_order(line, writers)]
        verdict.misses += [f"{line.name}: {miss}" for miss in _check_content(line, journal)]
        verdict.misses += [f"{line.name}: {miss}" for miss in _check_chains(line)]
        verdict.excused += sum(map(line.is_covered, line.missing(journal)))
    return verdict


def _check_journal(ledger: Ledger, journal: Sequence[Row], writers: dict[Token, Transaction]) -> list[str]:
    misses = []
    written = Counter(row.token for row in journal)
    for token, count in written.items():
        if count > 1:
            misses.append(f"the journal has {token} {count} times")
        if token not in writers:
            misses.append(f"the journal has {token}, which was rolled back to a savepoint or never written")
    for one in ledger.transactions:
        there = sum(token in written for token in one.tokens)
        allowed = {
            TransactionEnd.COMMITTED: {len(one.tokens)},
            TransactionEnd.ROLLED_BACK: {0},
            TransactionEnd.IN_DOUBT: {0, len(one.tokens)},
        }[one.fate]
        if there not in allowed:
            misses.append(
                f"the journal has {there} of {len(one.tokens)} rows of transaction {one.txid}, {one.fate.value}"
            )
    return misses


def _check_order(line: ReaderLog, writers: dict[Token, Transaction]) -> list[str]:
    """Check that no row precedes one that was committed before it began."""
    misses = []
    soonest, earlier = math.inf, None
    for row in reversed(line.rows):
        transaction = writers.get(row.token)
        if transaction is None:
            continue
        if soonest < transaction.began:
            misses.append(f"{row} precedes {earlier}, which was committed before it began")
        if transaction.ended < soonest:
            soonest, earlier = transaction.ended, row
    return misses


def _check_content(line: ReaderLog, journal: Sequence[Written]) -> list[str]:
    """Check that the log has each row exactly once, and no other."""
    misses = []
    received = Counter(row.seq for row in line.rows)
    if twice := [seq for seq, count in received.items() if count > 1]:
        misses.append(f"{len(twice)} rows came twice or more, among them {twice[:5]}")
    known = {one.row for one in line.expected(journal)}
    if unknown := [row for row in line.rows if row not in known]:
        misses.append(f"{len(unknown)} rows are not in the journal, among them {unknown[:5]}")
    if lost := [one for one in line.missing(journal) if not line.is_covered(one)]:
        misses.append(f"{len(lost)} of {len(known)} rows are missing, among them {lost[:5]}")
    return misses


def _check_chains(line: ReaderLog) -> list[str]:
    """Check that transitions of each task instance are in order, each from the state that the one before led to."""
    misses = []
    breaks = [restart.after for restart in line.restarts]
    last: dict[InstanceKey, tuple[int, Row]] = {}
    broken: dict[InstanceKey, int] = defaultdict(int)
    for instance, row in enumerate(line.rows):
        if row.instance in last:
            at, before = last[row.instance]
            gap = any(at < count <= instance for count in breaks)
            if row.seq < before.seq or (row.previous_state != before.state and not gap):
                broken[row.instance] += 1
        last[row.instance] = instance, row
    if broken:
        misses.append(f"{sum(broken.values())} breaks in the chains of {len(broken)} task instances")
    return misses
