"""The loop from the journal to the hub: read all that is new, then wait for the doorbell or the poll interval.

A lost connection loses nothing: the loop connects again and goes on from the same cursor.

A tail that waits for the doorbell has lain down: it holds a lock that tells Airflow's transactions to ring. Under load
it gets up and reads at its own pace, and the transactions are silent. Before it waits again, it lies down, sees that
every silent transaction has ended, and reads once more, in this order: so no row is left unread without a ring
(`docs/decisions/0006`; `tests/unit/test_doorbell_model.py` walks through every order of events).
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

from stream_server.domain.transition import Read, Transition
from stream_server.errors import JournalForbidden, JournalUnreachable, Unavailable
from stream_server.journal.gaps import Losses
from stream_server.journal.listener import Listener, Obstacle
from stream_server.journal.pacing import Pace
from stream_server.journal.reader import Reader, SkippedRow, log_skipped
from stream_server.journal.recent_rows import KEPT, Marks
from stream_server.journal.undecodable_rows import Causes, ResyncTimer
from stream_server.protocol.cursor import Cursor
from stream_server.protocol.frames import ResetReason

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest wait before connecting again; it doubles each time, with jitter."""

DEAF_POLL_SECONDS = (0.5, 5.0)
"""How often to look where the doorbell can't be heard: while runs are watched, and while none is."""

DROWSY_SECONDS = (0.005, 0.5)
"""First and longest wait for the end of silent transactions; it doubles each time."""


class Audience(Protocol):
    """Whom a tail tells: a `Hub`, or all those of a host."""

    @property
    def watching(self) -> bool:
        """Whether anything is watched."""

    def on_watch(self, call: Callable[[], None]) -> None:
        """Have something called whenever somebody begins to watch."""

    def wants_body(self, transition: Transition) -> bool:
        """Tell whether what a task has said is wanted, with the row that says that it has."""

    def begin(self, cursor: Cursor) -> None:
        """Say from where on batches will come."""

    def dispatch(self, transitions: Sequence[Transition], cursor: Cursor, read: Read | None) -> None:
        """Hand on a batch, how far it goes, and when it was read, where it has rows."""

    def begin_anew(self, cursor: Cursor, reason: ResetReason) -> None:
        """Say that what was known may not be true any more."""

    async def reconnect(self, cursor: Cursor) -> None:
        """Say that the server may be another one from here on."""


class Observer(Protocol):
    """Who counts what a tail does: `stream_server.metrics`."""

    def read(self, why: Why, rows: int, seconds: float) -> None:
        """A read found so many rows, and took so many seconds."""

    def lag(self, seconds: float) -> None:
        """A row was handed on so many seconds after it was written, by PostgreSQL's clock."""

    def lost(self) -> None:
        """A connection was lost, or could not be made."""

    def began_anew(self, reason: ResetReason) -> None:
        """All watchers were told to begin anew."""

    def rows_skipped(self, rows: int) -> None:
        """So many rows could not be decoded."""


Why = Literal["ring", "poll", "load"]
"""Why a tail reads: the doorbell rang, it had not for long, or there is so much to read that none is needed."""


class Nobody:
    """An observer that does not look."""

    def read(self, why: Why, rows: int, seconds: float) -> None:
        """Do nothing."""

    def lag(self, seconds: float) -> None:
        """Do nothing."""

    def lost(self) -> None:
        """Do nothing."""

    def began_anew(self, reason: ResetReason) -> None:
        """Do nothing."""

    def rows_skipped(self, rows: int) -> None:
        """Do nothing."""


class Vigil(Enum):
    """How awake a tail is."""

    AWAKE = "awake"
    """It reads at its own pace; transactions may be silent."""

    DROWSY = "drowsy"
    """It has lain down: transactions ring, but silent ones may be under way."""

    ASLEEP = "asleep"
    """None is under way, and it waits to be rung for."""


@dataclass(frozen=True)
class TailStatus:
    """How the tail is doing."""

    connected: bool = False
    hears: bool = False
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
        audience: Audience,
        *,
        poll_interval: float,
        check_interval: float,
        observer: Observer | None = None,
    ) -> None:
        self._url = url
        self._audience = audience
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._observer = observer or Nobody()
        self._bell = asyncio.Event()
        audience.on_watch(self._bell.set)
        self._cursor: Cursor | None = None
        self._seen: Cursor | None = None
        self._losses = Losses()
        self._marks = Marks()
        self._causes = Causes()
        self._resync_timer = ResyncTimer(self._request_resync)
        self._resync_requested = False
        self._whole = True
        self._pace = Pace()
        self._vigil = Vigil.AWAKE
        self._drowsy_for = DROWSY_SECONDS[0]
        self._why: Why = "poll"
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
        wait, longest = BACKOFF_SECONDS
        while True:
            began = time.monotonic()
            try:
                await self._follow()
            except Unavailable as error:
                self.status = TailStatus(problems=[str(error)])
                if time.monotonic() - began > longest:
                    wait = BACKOFF_SECONDS[0]
                log.warning("%s; connecting again", error, extra={"action": "tail_lost"})
                self._observer.lost()
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets
            wait = min(wait * 2, longest)

    async def _follow(self) -> None:
        """Follow the journal until the connection is lost, or the replica at its other end is one no more."""
        async with (
            Reader.open(self._url) as reader,
            Listener.open(self._url, self._bell.set, beside=reader.connection) as listener,
        ):
            await self._take_up(reader)
            self.status = TailStatus(connected=True, hears=listener.hears, problems=[])
            _report(listener.obstacle)
            self._vigil, checked = Vigil.AWAKE, float("-inf")
            while not listener.lost:
                if time.monotonic() - checked > self._check_interval:
                    checked = time.monotonic()
                    await self._check(reader)
                    if listener.obstacle is Obstacle.REPLICA and not await reader.is_replica():
                        log.info("The read replica has become a primary", extra={"action": "tail_promoted"})
                        return
                await self._read(reader)
                await self._rest(listener)
        raise JournalUnreachable("PostgreSQL does not answer (the listening connection was lost)")

    async def _take_up(self, reader: Reader) -> None:
        """Go on from where we were, unless the journal is another one now, or lacks what we have told."""
        now, losses = await reader.now()
        if self._cursor is None:
            self._losses.begin(losses)
            self._marks.begin(await reader.newest(KEPT))
            self._cursor = now
            self._audience.begin(now)
            return
        await self._audience.reconnect(self._cursor)
        if not now.covers(self._cursor) or await reader.lacks(self._marks.all()):
            # What we have handed on is not there any more: a failover to a server that was behind, or a restored one.
            self._losses.begin(losses)
            self._marks.begin(await reader.newest(KEPT))
            self._begin_anew(now, "journal_changed")

    async def _read(self, reader: Reader) -> None:
        assert self._cursor is not None, "_take_up has set it"
        # Cleared before reading: a ring during the read may be for a row that the read did not see.
        self._bell.clear()
        began = time.monotonic()
        batch = await reader.after(self._cursor)
        # Whoever begins to watch from now on reads a state that has seen all of it.
        transitions = await reader.with_bodies(batch.transitions, self._audience.wants_body)
        took = time.monotonic() - began
        self._cursor, self._seen = batch.cursor, batch.seen
        self._marks.told(batch.rows)
        lags = [(batch.read_at - row.at).total_seconds() for row in batch.rows]
        self._audience.dispatch(transitions, batch.cursor, Read(max(lags), began + took) if transitions else None)
        if batch.skipped:
            self._skip(batch.skipped)
        if self._losses.noticed(batch.losses, batch.seen) or batch.pruned or self._resync_requested:
            self._begin_anew(batch.cursor, "transitions_lost")
        # Of each transaction, what its last row has waited: the longer it goes on itself, the less it says of others.
        waits = dict(zip((row.txid for row in batch.rows), lags, strict=True))
        self._pace.note(time.monotonic(), waits.values(), took)
        self._observer.read(self._why, len(batch.rows), took)
        for lag in lags:
            self._observer.lag(lag)

    def _skip(self, skipped: Sequence[SkippedRow]) -> None:
        """Count and log rows that cannot be decoded, and resync clients: they may have missed something."""
        self._observer.rows_skipped(len(skipped))
        log_skipped(skipped, self._causes)
        self._resync_timer.request()

    def _request_resync(self) -> None:
        self._resync_requested = True
        # A request that had to wait comes between two reads: the next one must not wait for a notification.
        self._bell.set()

    async def _rest(self, listener: Listener) -> None:
        """Wait until it is time to read again; at once where reading again is what makes sleeping safe."""
        if not listener.hears:
            await self._wait(DEAF_POLL_SECONDS[0 if self._audience.watching else 1])
        elif self._vigil is Vigil.ASLEEP:
            if self._pace.busy:
                await listener.get_up()
                self._vigil, self._why = Vigil.AWAKE, "load"
            else:
                await self._wait(self._poll_interval)
        elif self._vigil is Vigil.DROWSY:
            if await listener.quiet():
                self._vigil = Vigil.ASLEEP
            else:
                await self._wait(self._drowsy_for)
                self._drowsy_for = min(2 * self._drowsy_for, DROWSY_SECONDS[1])
        elif self._pace.quiet(time.monotonic()) and await listener.lie_down():
            self._vigil, self._drowsy_for = Vigil.DROWSY, DROWSY_SECONDS[0]
        else:
            # Not until the bell rings: other tails sleep, perhaps, and it rings all the time.
            await asyncio.sleep(self._pace.pause)

    async def _check(self, reader: Reader) -> None:
        """Look whether the triggers stand, and put back those that `airflow db reset` has taken away."""
        assert self._cursor is not None, "_take_up has set it"
        problems, put_back = await reader.problems(), 0
        if problems:
            log.error("Streams are incomplete: %s", "; ".join(problems), extra={"action": "journal_problem"})
            self._whole = False
            try:
                if put_back := await reader.put_back():
                    log.warning("Put back %d triggers", put_back, extra={"action": "triggers_put_back"})
                    problems = await reader.problems()
            except JournalForbidden as error:
                log.warning("%s", error, extra={"action": "journal_problem"})
        if not problems and not self._whole:
            self._whole = True
            if not put_back:
                self._losses.happened(self._seen or self._cursor)
            # Otherwise once is enough: putting a trigger back has waited for all who had written without it.
            self._begin_anew(self._cursor, "transitions_lost")
        if problems != self.status.problems:
            self.status = replace(self.status, problems=problems)

    def _begin_anew(self, cursor: Cursor, reason: ResetReason) -> None:
        log.warning("Streams begin anew: %s", reason.replace("_", " "), extra={"action": reason})
        self._observer.began_anew(reason)
        self._cursor = cursor
        self._resync_requested = False
        self._audience.begin_anew(cursor, reason)

    async def _wait(self, seconds: float) -> None:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes at the same time as the bell.
        self._why = "poll"
        with anyio.move_on_after(seconds):
            await self._bell.wait()
            self._why = "ring"


def _report(obstacle: Obstacle | None) -> None:
    if obstacle is None:
        log.info("Following the journal", extra={"action": "tail_connected"})
    else:
        log.warning("%s", obstacle.told(DEAF_POLL_SECONDS[0]), extra={"action": "tail_deaf"})
