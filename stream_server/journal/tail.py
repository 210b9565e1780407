"""The loop from the journal to the hub: read all that is new, then wait for the doorbell or the poll interval.

A lost connection loses nothing: the loop connects again and goes on from the same cursor.

A tail that waits for the doorbell has lain down: it holds a lock that tells Airflow's transactions to ring. Under load
it gets up and reads at its own pace, and the transactions are silent. Before it waits again, it lies down, sees that
every silent transaction has ended, and reads once more, in this order: so no row is left unread without a ring
(`docs/decisions/0006`; `tests/unit/journal/test_notify_protocol_model.py` walks through every order of events).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, Protocol

import anyio

from stream_server.domain.transition import ReadTiming, Transition
from stream_server.errors import JournalForbidden, JournalUnreachable, Unavailable
from stream_server.journal.gaps import GapDetector
from stream_server.journal.listener import Listener, ListenObstacle
from stream_server.journal.pacing import Pacing
from stream_server.journal.reader import JournalReader, SkippedRow, log_skipped
from stream_server.journal.recent_rows import MAX_RECENT_ROWS, RecentRows
from stream_server.journal.undecodable_rows import Causes, ResyncTimer
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason

log = logging.getLogger(__name__)

RECONNECT_SECONDS = (0.1, 5.0)
"""First and longest wait before connecting again; it doubles each time, with jitter."""

POLL_WITHOUT_NOTIFY_SECONDS = (0.5, 5.0)
"""How often to look where the doorbell can't be heard: while runs are watched, and while none is."""

SETTLE_SECONDS = (0.005, 0.5)
"""First and longest wait for the end of silent transactions; it doubles each time."""


class BatchSink(Protocol):
    """Whom a tail tells: a `Hub`, or all those of a host."""

    @property
    def has_subscribers(self) -> bool:
        """Whether anything is watched."""

    def on_subscribe(self, call: Callable[[], None]) -> None:
        """Have something called whenever somebody begins to watch."""

    def wants_output_of(self, transition: Transition) -> bool:
        """Tell whether what a task has said is wanted, with the row that says that it has."""

    def start(self, cursor: JournalPosition) -> None:
        """Say from where on batches will come."""

    def dispatch(self, transitions: Sequence[Transition], cursor: JournalPosition, read: ReadTiming | None) -> None:
        """Hand on a batch, how far it goes, and when it was read, where it has rows."""

    def resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        """Say that what was known may not be true any more."""

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Say that the server may be another one from here on."""


class TailObserver(Protocol):
    """Who counts what a tail does: `stream_server.metrics`."""

    def record_read(self, why: ReadReason, rows: int, seconds: float) -> None:
        """A read found so many rows, and took so many seconds."""

    def record_lag(self, seconds: float) -> None:
        """A row was handed on so many seconds after it was written, by PostgreSQL's clock."""

    def record_connection_loss(self) -> None:
        """A connection was lost, or could not be made."""

    def record_resync(self, reason: ResetReason) -> None:
        """All watchers were told to begin anew."""

    def rows_skipped(self, rows: int) -> None:
        """So many rows could not be decoded."""


ReadReason = Literal["ring", "poll", "load"]
"""Why a tail reads: the doorbell rang, it had not for long, or there is so much to read that none is needed."""


class NullTailObserver:
    """An observer that does not look."""

    def record_read(self, why: ReadReason, rows: int, seconds: float) -> None:
        """Do nothing."""

    def record_lag(self, seconds: float) -> None:
        """Do nothing."""

    def record_connection_loss(self) -> None:
        """Do nothing."""

    def record_resync(self, reason: ResetReason) -> None:
        """Do nothing."""

    def rows_skipped(self, rows: int) -> None:
        """Do nothing."""


class IdleState(Enum):
    """How awake a tail is."""

    ACTIVE = "awake"
    """It reads at its own pace; transactions may be silent."""

    SETTLING = "drowsy"
    """It has lain down: transactions ring, but silent ones may be under way."""

    IDLE = "asleep"
    """None is under way, and it waits to be rung for."""


@dataclass(frozen=True)
class TailStatus:
    """How the tail is doing."""

    is_connected: bool = False
    receives_notifications: bool = False
    """Whether the doorbell works; otherwise the tail polls."""

    problems: list[str] = field(default_factory=lambda: ["the journal has not been reached yet"])
    """Why streams would be incomplete or late, in words; empty if all is well."""


class Tail:
    """Follows the journal of one database for as long as the process lives.

    Args:
        url: Database URL.
        audience: Where batches go.
        poll_interval: Seconds after which to look without having heard the doorbell.
        check_interval: Seconds after which to look whether the triggers stand.
        observer: Who counts what happens.
    """

    def __init__(
        self,
        url: str,
        audience: BatchSink,
        *,
        poll_interval: float,
        check_interval: float,
        observer: TailObserver | None = None,
    ) -> None:
        self._url = url
        self._sink = audience
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._observer = observer or NullTailObserver()
        self._wake = asyncio.Event()
        audience.on_subscribe(self._wake.set)
        self._position: JournalPosition | None = None
        self._full_snapshot: JournalPosition | None = None
        self._gaps = GapDetector()
        self._recent_rows = RecentRows()
        self._causes = Causes()
        self._resync_timer = ResyncTimer(self._request_resync)
        self._resync_requested = False
        self._triggers_complete = True
        self._pacing = Pacing()
        self._idle_state = IdleState.ACTIVE
        self._settle_seconds = SETTLE_SECONDS[0]
        self._read_reason: ReadReason = "poll"
        self._status = TailStatus()
        self._on_status: Callable[[], None] = lambda: None

    @property
    def status(self) -> TailStatus:
        """How it is doing."""
        return self._status

    @status.setter
    def status(self, status: TailStatus) -> None:
        self._status = status
        self._on_status()

    def on_status(self, call: Callable[[], None]) -> None:
        """Have something called whenever it does better or worse."""
        self._on_status = call

    async def run(self) -> None:
        """Follow the journal until cancelled."""
        wait, longest = RECONNECT_SECONDS
        while True:
            began = time.monotonic()
            try:
                await self._follow()
            except Unavailable as error:
                self.status = TailStatus(problems=[str(error)])
                if time.monotonic() - began > longest:
                    wait = RECONNECT_SECONDS[0]
                log.warning("%s; connecting again", error, extra={"action": "tail_lost"})
                self._observer.record_connection_loss()
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets
            wait = min(wait * 2, longest)

    async def _follow(self) -> None:
        """Follow the journal until the connection is lost, or the replica at its other end is one no more."""
        async with (
            JournalReader.open(self._url) as reader,
            Listener.open(self._url, self._wake.set, beside=reader.connection) as listener,
        ):
            await self._start_from(reader)
            self.status = TailStatus(
                is_connected=True, receives_notifications=listener.receives_notifications, problems=[]
            )
            _log_listener_state(listener.obstacle)
            self._idle_state, checked = IdleState.ACTIVE, float("-inf")
            while not listener.is_lost:
                if time.monotonic() - checked > self._check_interval:
                    checked = time.monotonic()
                    await self._check_triggers(reader)
                    if listener.obstacle is ListenObstacle.REPLICA and not await reader.is_replica():
                        log.info("The read replica has become a primary", extra={"action": "tail_promoted"})
                        return
                await self._read_batch(reader)
                await self._wait_for_work(listener)
        raise JournalUnreachable("PostgreSQL does not answer (the listening connection was lost)")

    async def _start_from(self, reader: JournalReader) -> None:
        """Go on from where we were, unless the journal is another one now, or lacks what we have told."""
        now, losses = await reader.read_head()
        if self._position is None:
            self._gaps.start(losses)
            self._recent_rows.start(await reader.read_newest_rows(MAX_RECENT_ROWS))
            self._position = now
            self._sink.start(now)
            return
        await self._sink.reconnect(self._position)
        if not now.covers(self._position) or await reader.is_any_row_missing(self._recent_rows.list_rows()):
            # What we have handed on is not there any more: a failover to a server that was behind, or a restored one.
            self._gaps.start(losses)
            self._recent_rows.start(await reader.read_newest_rows(MAX_RECENT_ROWS))
            self._resync(now, "journal_changed")

    async def _read_batch(self, reader: JournalReader) -> None:
        assert self._position is not None, "_take_up has set it"
        # Cleared before reading: a ring during the read may be for a row that the read did not see.
        self._wake.clear()
        began = time.monotonic()
        batch = await reader.read_after(self._position)
        # Whoever begins to watch from now on reads a state that has seen all of it.
        transitions = await reader.add_output_bodies(batch.transitions, self._sink.wants_output_of)
        took = time.monotonic() - began
        self._position, self._full_snapshot = batch.position, batch.full_snapshot
        self._recent_rows.add(batch.rows)
        lags = [(batch.read_at - row.at).total_seconds() for row in batch.rows]
        self._sink.dispatch(transitions, batch.position, ReadTiming(max(lags), began + took) if transitions else None)
        if batch.skipped:
            self._skip(batch.skipped)
        if (
            self._gaps.check(batch.dropped_writes, batch.full_snapshot)
            or batch.missed_pruned_rows
            or self._resync_requested
        ):
            self._resync(batch.position, "transitions_lost")
        # Of each transaction, what its last row has waited: the longer it goes on itself, the less it says of others.
        waits = dict(zip((row.txid for row in batch.rows), lags, strict=True))
        self._pacing.record(time.monotonic(), waits.values(), took)
        self._observer.record_read(self._read_reason, len(batch.rows), took)
        for lag in lags:
            self._observer.record_lag(lag)

    def _skip(self, skipped: Sequence[SkippedRow]) -> None:
        """Count and log rows that cannot be decoded, and resync clients: they may have missed something."""
        self._observer.rows_skipped(len(skipped))
        log_skipped(skipped, self._causes)
        self._resync_timer.request()

    def _request_resync(self) -> None:
        self._resync_requested = True
        # A request that had to wait comes between two reads: the next one must not wait for a notification.
        self._wake.set()

    async def _wait_for_work(self, listener: Listener) -> None:
        """Wait until it is time to read again; at once where reading again is what makes sleeping safe."""
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
                await self._wait_for_wake(self._settle_seconds)
                self._settle_seconds = min(2 * self._settle_seconds, SETTLE_SECONDS[1])
        elif self._pacing.is_quiet(time.monotonic()) and await listener.go_idle():
            self._idle_state, self._settle_seconds = IdleState.SETTLING, SETTLE_SECONDS[0]
        else:
            # Not until the bell rings: other tails sleep, perhaps, and it rings all the time.
            await asyncio.sleep(self._pacing.pause_seconds)

    async def _check_triggers(self, reader: JournalReader) -> None:
        """Look whether the triggers stand, and put back those that `airflow db reset` has taken away."""
        assert self._position is not None, "_take_up has set it"
        problems, put_back = await reader.find_trigger_problems(), 0
        if problems:
            log.error("Streams are incomplete: %s", "; ".join(problems), extra={"action": "journal_problem"})
            self._triggers_complete = False
            try:
                if put_back := await reader.restore_triggers():
                    log.warning("Put back %d triggers", put_back, extra={"action": "triggers_put_back"})
                    problems = await reader.find_trigger_problems()
            except JournalForbidden as error:
                log.warning("%s", error, extra={"action": "journal_problem"})
        if not problems and not self._triggers_complete:
            self._triggers_complete = True
            if not put_back:
                self._gaps.record_gap(self._full_snapshot or self._position)
            # Otherwise once is enough: putting a trigger back has waited for all who had written without it.
            self._resync(self._position, "transitions_lost")
        if problems != self.status.problems:
            self.status = replace(self.status, problems=problems)

    def _resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        log.warning("Streams begin anew: %s", reason.replace("_", " "), extra={"action": reason})
        self._observer.record_resync(reason)
        self._position = cursor
        self._resync_requested = False
        self._sink.resync(cursor, reason)

    async def _wait_for_wake(self, seconds: float) -> None:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes at the same time as the bell.
        self._read_reason = "poll"
        with anyio.move_on_after(seconds):
            await self._wake.wait()
            self._read_reason = "ring"


def _log_listener_state(obstacle: ListenObstacle | None) -> None:
    if obstacle is None:
        log.info("Following the journal", extra={"action": "tail_connected"})
    else:
        log.warning("%s", obstacle.describe(POLL_WITHOUT_NOTIFY_SECONDS[0]), extra={"action": "tail_deaf"})
