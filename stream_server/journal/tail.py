"""The tail: follows the journal, and passes batches of transitions to the hub.

It reads all new rows, then waits for a notification or the poll interval. After a lost connection it reconnects and
continues at the same position, so no row is lost.

States (`IdleState`), and why no row stays unread without a notification:

    ACTIVE    reads every few milliseconds; transactions need not notify
      |  few transactions: take the idle-consumer lock, so that transactions notify from now on
    SETTLING  wait until every transaction that did not notify has ended
      |  then read once more: the rows of these transactions are visible now
    IDLE      wait for a notification, or for the poll interval
      |  many transactions: release the lock
    ACTIVE

The order of these steps matters. `docs/decisions/0006` explains it; `tests/unit/journal/test_notify_protocol_model.py`
checks every order of events of writers and tails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, Protocol

import anyio

from stream_server.domain.transition import ReadTiming, Transition
from stream_server.errors import JournalForbidden, JournalUnreachable, SettingsError, Unavailable
from stream_server.journal.gaps import GapDetector
from stream_server.journal.human_input import add_requests
from stream_server.journal.listener import Listener, ListenObstacle
from stream_server.journal.output_bodies import add_output_bodies
from stream_server.journal.pacing import Pacing
from stream_server.journal.reader import JournalReader, SkippedRow, log_skipped_rows
from stream_server.journal.recent_rows import MAX_RECENT_ROWS, RecentRows
from stream_server.journal.row_slices import ROWS_AT_ONCE
from stream_server.journal.status import JournalStatus
from stream_server.journal.undecodable_rows import LoggedCauses, ResyncTimer
from stream_server.protocol.backoff import NO_JITTER, Backoff
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason

log = logging.getLogger(__name__)

RECONNECT_SECONDS = (0.1, 5.0)
"""First and longest wait before a reconnect."""

POLL_WITHOUT_NOTIFY_SECONDS = (0.5, 5.0)
"""Poll intervals if no notifications arrive: with subscribers, and without."""

SETTLE_SECONDS = (0.005, 0.5)
"""First and longest wait between two checks whether unnotified writers have ended."""


class BatchSink(Protocol):
    """Where a tail passes its batches: a `Hub`, or the `Relay` to the hubs of all workers."""

    @property
    def has_subscribers(self) -> bool:
        """Whether any run, or all runs, have subscribers."""

    def on_subscribe(self, call: Callable[[], None]) -> None:
        """Set the function to call when the first subscriber arrives."""

    def wants_output_of(self, transition: Transition) -> bool:
        """Whether the output of this transition must be read."""

    def start(self, cursor: JournalPosition) -> None:
        """Set the position after which batches will follow. Called once."""

    def dispatch(self, transitions: Sequence[Transition], cursor: JournalPosition, read: ReadTiming | None) -> None:
        """Pass on a batch, the position after it, and its time of read, which is `None` for an empty batch."""

    def resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        """Have all clients resync: the state that they know may be wrong. Batches after the position follow."""

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Prepare for a server that may be another one: called after each reconnect, before the first read."""


class TailObserver(Protocol):
    """Records the metrics of a tail."""

    def record_read(self, reason: ReadReason, rows: int, seconds: float) -> None:
        """Record a read, its number of rows and its duration."""

    def record_lag(self, seconds: float) -> None:
        """Record the seconds from the write of a row to its read, by PostgreSQL's clock."""

    def record_connection_loss(self) -> None:
        """Record a connection that was lost, or could not be opened."""

    def record_resync(self, reason: ResetReason) -> None:
        """Record a resync of all clients."""

    def record_skipped_rows(self, rows: int) -> None:
        """Record rows that could not be decoded."""


ReadReason = Literal["ring", "poll", "load"]
"""Why a tail reads: after a notification, after the poll interval, or because of load. Label values of a metric."""


class IdleState(Enum):
    """Whether a tail waits for notifications. The module docstring has the transitions."""

    ACTIVE = "active"
    """It reads without waiting for notifications. Transactions need not notify."""

    SETTLING = "settling"
    """Transactions notify, but earlier ones that did not may still be in progress."""

    IDLE = "idle"
    """All transactions in progress notify. It waits for a notification."""


@dataclass(frozen=True)
class TailStatus:
    """Status of a tail, as `/ready` reports it."""

    is_connected: bool = False
    receives_notifications: bool = False
    """Whether notifications arrive; otherwise the tail polls."""

    problems: list[str] = field(default_factory=lambda: ["the journal has not been reached yet"])
    """Why streams may be incomplete or late, as sentences; empty if nothing is wrong."""

    warnings: list[str] = field(default_factory=list)
    """What an operator should look at, as sentences, although streams can be served."""


class Tail:
    """Follows the journal of one database for the lifetime of the process.

    Args:
        url: Database URL.
        sink: Gets the batches.
        poll_interval: Seconds after which to read without a notification.
        check_interval: Seconds between two checks of the triggers.
        observer: Records metrics.
    """

    def __init__(
        self,
        url: str,
        sink: BatchSink,
        *,
        poll_interval: float,
        check_interval: float,
        observer: TailObserver,
    ) -> None:
        self._url = url
        self._sink = sink
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._observer = observer
        self._wake = asyncio.Event()
        sink.on_subscribe(self._wake.set)
        self._position: JournalPosition | None = None
        self._full_snapshot: JournalPosition | None = None
        self._gaps = GapDetector()
        self._recent_rows = RecentRows()
        self._logged_causes = LoggedCauses()
        self._resync_timer = ResyncTimer(self._request_resync)
        self._resync_requested = False
        self._triggers_complete = True
        self._checked_at = float("-inf")
        self._switched_on_at = float("-inf")
        self._pacing = Pacing()
        self._idle_state = IdleState.ACTIVE
        self._settle_backoff = Backoff(*SETTLE_SECONDS, jitter=NO_JITTER)
        self._read_reason: ReadReason = "poll"
        self._status = TailStatus()
        self._on_status: Callable[[], None] = lambda: None

    @property
    def status(self) -> TailStatus:
        return self._status

    @status.setter
    def status(self, status: TailStatus) -> None:
        self._status = status
        self._on_status()

    def on_status(self, call: Callable[[], None]) -> None:
        """Set the function to call when the status changes."""
        self._on_status = call

    async def run(self) -> None:
        """Follow the journal until cancelled."""
        backoff = Backoff(*RECONNECT_SECONDS)
        while True:
            started = time.monotonic()
            try:
                await self._follow()
            except (Unavailable, SettingsError) as error:
                # A file that the URL names, such as that of a service, may have become wrong meanwhile.
                self.status = TailStatus(problems=[str(error)])
                log.warning("%s; reconnecting", error, extra={"action": "tail_lost"})
                self._observer.record_connection_loss()
            backoff.reset_after(time.monotonic() - started)
            await asyncio.sleep(backoff.next_wait())

    async def _follow(self) -> None:
        """Follow the journal until the connection is lost, or the read replica is promoted."""
        async with (
            JournalReader.open(self._url) as reader,
            Listener.open(self._url, self._wake.set, second_connection=reader.connection) as listener,
        ):
            await self._start_from(reader)
            self.status = TailStatus(
                is_connected=True, receives_notifications=listener.receives_notifications, problems=[]
            )
            _log_listener_state(listener.obstacle)
            self._idle_state, self._checked_at = IdleState.ACTIVE, float("-inf")
            while not listener.is_lost:
                if time.monotonic() - self._checked_at > self._check_interval:
                    self._checked_at = time.monotonic()
                    await self._adopt_foreign_journal(reader)
                    await self._check_triggers(reader)
                    if listener.obstacle is ListenObstacle.REPLICA and not await reader.is_replica():
                        log.info("The read replica was promoted to a primary", extra={"action": "tail_promoted"})
                        return
                await self._read_batch(reader)
                await self._wait_for_work(listener)
        raise JournalUnreachable("PostgreSQL does not answer (the listening connection was lost)")

    async def _start_from(self, reader: JournalReader) -> None:
        """Continue at the current position, or resync if the journal lacks rows that were read."""
        await self._adopt_foreign_journal(reader)
        head = await reader.read_head()
        if self._position is None:
            self._gaps.start(head.dropped_writes)
            self._recent_rows.start(await reader.read_newest_rows(MAX_RECENT_ROWS))
            self._position = head.position
            self._sink.start(head.position)
            return
        await self._sink.reconnect(self._position)
        if not head.position.covers(self._position) or await reader.is_any_row_missing(self._recent_rows.list_rows()):
            # Rows that were passed on are gone: a failover to a server that was behind, or a restored backup.
            self._gaps.start(head.dropped_writes)
            self._recent_rows.start(await reader.read_newest_rows(MAX_RECENT_ROWS))
            self._resync(head.position, "journal_changed")

    async def _adopt_foreign_journal(self, reader: JournalReader) -> None:
        """Start a new history if the ids of the journal are those of another cluster.

        The next read of the old history fails then, and the next connection resyncs.
        """
        if await reader.adopt_foreign_journal():
            log.warning(
                "The journal was that of another cluster: it was emptied, and has a new epoch",
                extra={"action": "journal_adopted"},
            )

    async def _read_batch(self, reader: JournalReader) -> None:
        assert self._position is not None, "_start_from has set it"
        # Cleared before the read: a notification during the read may be for a row that the read does not see.
        self._wake.clear()
        started = time.monotonic()
        batch = await reader.read_after(self._position)
        transitions = await add_requests(batch.transitions, reader.read_requests)
        transitions = await add_output_bodies(transitions, self._sink.wants_output_of, reader.read_output_bodies)
        finished = time.monotonic()
        duration = finished - started
        self._position, self._full_snapshot = batch.position, batch.full_snapshot
        self._recent_rows.add(batch.rows)
        lags = [(batch.read_at - row.at).total_seconds() for row in batch.rows]
        self._sink.dispatch(transitions, batch.position, ReadTiming(max(lags), finished) if transitions else None)
        if batch.skipped:
            self._handle_skipped(batch.skipped)
        if (
            self._gaps.check(batch.dropped_writes, batch.full_snapshot)
            or batch.missed_pruned_rows
            or self._resync_requested
        ):
            self._resync(batch.position, "transitions_lost")
            # They may have been disabled.
            self._checked_at = float("-inf")
        # For each transaction, the wait of its last row: that of earlier rows includes the length of the transaction.
        waits = dict(zip((row.txid for row in batch.rows), lags, strict=True))
        self._pacing.record(time.monotonic(), waits.values(), duration)
        self._observer.record_read(self._read_reason, len(batch.rows), duration)
        for number, lag in enumerate(lags, 1):
            self._observer.record_lag(lag)
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _handle_skipped(self, skipped: Sequence[SkippedRow]) -> None:
        """Count and log rows that can't be decoded, and have clients resync: these rows are missing for them."""
        self._observer.record_skipped_rows(len(skipped))
        log_skipped_rows(skipped, self._logged_causes)
        self._resync_timer.request()

    def _request_resync(self) -> None:
        self._resync_requested = True
        # A delayed request arrives between two reads: the next read must not wait for a notification.
        self._wake.set()

    async def _wait_for_work(self, listener: Listener) -> None:
        """Wait until the next read is due, and change the idle state. Return at once if a read is due now."""
        if not listener.receives_notifications:
            await self._wait_for_wake(POLL_WITHOUT_NOTIFY_SECONDS[0 if self._sink.has_subscribers else 1])
        elif self._idle_state is IdleState.IDLE:
            if self._pacing.is_busy:
                await listener.wake_up()
                self._idle_state, self._read_reason = IdleState.ACTIVE, "load"
            else:
                await self._wait_for_wake(self._poll_interval)
        elif self._idle_state is IdleState.SETTLING:
            if await listener.unnotified_writers_ended():
                self._idle_state = IdleState.IDLE
            else:
                await self._wait_for_wake(self._settle_backoff.next_wait())
        elif self._pacing.is_quiet(time.monotonic()) and await listener.go_idle():
            self._idle_state = IdleState.SETTLING
            self._settle_backoff.reset()
        else:
            # Ignore notifications: they are for other tails, which may be idle, and arrive all the time.
            await asyncio.sleep(self._pacing.pause_seconds)

    async def _check_triggers(self, reader: JournalReader) -> None:
        """Check the triggers, and restore those that `airflow db reset` has dropped or that switched themselves off."""
        assert self._position is not None, "_start_from has set it"
        status, restored = await reader.read_status(), 0
        problems = status.problems
        if problems:
            log.error("Streams are incomplete: %s", "; ".join(problems), extra={"action": "journal_problem"})
            self._triggers_complete = False
            if self._may_restore_triggers(status):
                try:
                    if restored := await reader.restore_triggers():
                        log.warning("Restored %d triggers", restored, extra={"action": "triggers_put_back"})
                    problems = (await reader.read_status()).problems
                except JournalForbidden as error:
                    log.warning("%s", error, extra={"action": "journal_problem"})
        if not problems and not self._triggers_complete:
            self._triggers_complete = True
            if not restored:
                self._gaps.record_gap(self._full_snapshot or self._position)
            # If triggers were restored, one resync is enough: CREATE TRIGGER has waited for all transactions that wrote
            # without them.
            self._resync(self._position, "transitions_lost")
        for warning in set(status.warnings).difference(self.status.warnings):
            log.warning("%s", warning, extra={"action": "journal_warning"})
        if (problems, status.warnings) != (self.status.problems, self.status.warnings):
            self.status = replace(self.status, problems=problems, warnings=status.warnings)

    def _may_restore_triggers(self, status: JournalStatus) -> bool:
        """Whether the triggers can read Airflow's tables, as far as is known.

        Triggers that meet another error at each row are switched on once in a check interval, although each loss, and
        each resync that it causes, is followed by a check.
        """
        if status.airflow_problem is not None:
            return False
        if status.schema_unknown:
            if self._checked_at - self._switched_on_at <= self._check_interval:
                return False
            self._switched_on_at = self._checked_at
        return True

    def _resync(self, position: JournalPosition, reason: ResetReason) -> None:
        log.warning("Clients resync: %s", reason.replace("_", " "), extra={"action": reason})
        self._observer.record_resync(reason)
        self._position = position
        self._resync_requested = False
        self._sink.resync(position, reason)

    async def _wait_for_wake(self, seconds: float) -> None:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes together with the event.
        self._read_reason = "poll"
        with anyio.move_on_after(seconds):
            await self._wake.wait()
            self._read_reason = "ring"


def _log_listener_state(obstacle: ListenObstacle | None) -> None:
    if obstacle is None:
        log.info("Following the journal", extra={"action": "tail_connected"})
    else:
        log.warning("%s", obstacle.describe(POLL_WITHOUT_NOTIFY_SECONDS[0]), extra={"action": "tail_deaf"})
