"""The loop from the journal to the hub: read all that is new, then wait for the doorbell or the poll interval.

A lost connection loses nothing: the loop connects again and goes on from the same cursor.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

import anyio

from stream_server.cursor import Cursor
from stream_server.errors import JournalForbidden, JournalUnreachable, Unavailable
from stream_server.frames import ResetReason
from stream_server.hub import Hub
from stream_server.journal.listener import Listener
from stream_server.journal.postgres import Reader

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest wait before connecting again; it doubles each time, with jitter."""

DEAF_POLL_SECONDS = 0.5
"""How often to look where the doorbell can't be heard."""


@dataclass
class TailStatus:
    """How the tail is doing."""

    connected: bool = False
    hears: bool = False
    """Whether the doorbell works; otherwise the tail polls."""

    problems: list[str] = field(default_factory=lambda: ["the journal has not been reached yet"])
    """Why streams would be incomplete or late, in words; empty if all is well."""


class Losses:
    """Says when watchers must begin anew because something is missing from the journal.

    What is missing may be part of a transaction that has not committed yet, and that no snapshot can show. So once is
    not enough: they begin anew once more when all transactions have ended that were in progress at the time.
    """

    def __init__(self) -> None:
        self._count: int | None = None
        self._unsettled_below: int | None = None

    def happened(self, cursor: Cursor) -> None:
        """Note that something is missing of which the counter knows nothing."""
        self._unsettled_below = cursor.xmax

    def noticed(self, count: int, cursor: Cursor) -> bool:
        """Tell whether watchers must begin anew, given the counter of the triggers and the cursor that read it."""
        before, self._count = self._count, count
        if before is not None and count != before:
            self.happened(cursor)
            return True
        if self._unsettled_below is not None and cursor.xmin >= self._unsettled_below:
            self._unsettled_below = None
            return True
        return False


class Tail:
    """Follows the journal of one database for as long as the process lives.

    Args:
        url: Database URL.
        hub: Where batches go.
        poll_interval: Seconds after which to look without having heard the doorbell.
        check_interval: Seconds after which to look whether the triggers stand.
    """

    def __init__(self, url: str, hub: Hub, *, poll_interval: float, check_interval: float) -> None:
        self._url = url
        self._hub = hub
        self._poll_interval = poll_interval
        self._check_interval = check_interval
        self._bell = asyncio.Event()
        self._cursor: Cursor | None = None
        self._seen: Cursor | None = None
        self._losses = Losses()
        self._whole = True
        self.status = TailStatus()

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
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets
            wait = min(wait * 2, longest)

    async def _follow(self) -> None:
        """Follow the journal until the connection is lost."""
        async with Reader.open(self._url) as reader, Listener.open(self._url, self._bell.set) as listener:
            await self._take_up(reader)
            self.status = TailStatus(connected=True, hears=listener.hears, problems=[])
            self._report(listener)
            checked = float("-inf")
            while not listener.lost:
                if time.monotonic() - checked > self._check_interval:
                    checked = time.monotonic()
                    await self._check(reader)
                await self._read(reader)
                await self._wait(self._poll_interval if listener.hears else DEAF_POLL_SECONDS)
        raise JournalUnreachable("PostgreSQL does not answer (the listening connection was lost)")

    async def _take_up(self, reader: Reader) -> None:
        """Go on from where we were, unless the journal is another one now, or has lost what we have read."""
        now, pruned_to = await reader.now()
        if self._cursor is None:
            self._cursor = now
            self._hub.begin(now)
        elif not now.covers(self._cursor):
            # What we have handed on is not there any more: a failover to a server that was behind, or a restored one.
            self._begin_anew(now, "journal_changed")
        elif pruned_to is not None and not self._cursor.saw(pruned_to):
            self._begin_anew(now, "transitions_lost")

    async def _read(self, reader: Reader) -> None:
        assert self._cursor is not None, "_take_up has set it"
        # Cleared before reading: a ring during the read may be for a row that the read did not see.
        self._bell.clear()
        batch = await reader.after(self._cursor)
        self._cursor, self._seen = batch.cursor, batch.seen
        self._hub.dispatch(batch.transitions, batch.cursor)
        if self._losses.noticed(batch.losses, batch.seen):
            self._begin_anew(batch.cursor, "transitions_lost")

    async def _check(self, reader: Reader) -> None:
        """Look whether the triggers stand, and put back those that `airflow db reset` has taken away."""
        assert self._cursor is not None, "_take_up has set it"
        problems = await reader.problems()
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
            self._losses.happened(self._seen or self._cursor)
            self._begin_anew(self._cursor, "transitions_lost")
        self.status.problems = problems

    def _begin_anew(self, cursor: Cursor, reason: ResetReason) -> None:
        log.warning("Streams begin anew: %s", reason.replace("_", " "), extra={"action": reason})
        self._cursor = cursor
        self._hub.begin_anew(cursor, reason)

    async def _wait(self, seconds: float) -> None:
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes at the same time as the bell.
        with anyio.move_on_after(seconds):
            await self._bell.wait()

    def _report(self, listener: Listener) -> None:
        if listener.hears:
            log.info("Following the journal", extra={"action": "tail_connected"})
        else:
            log.warning(
                "LISTEN does not work on this connection (a pooler in transaction mode, or a read replica?);"
                " polling every %g s. Give a direct URL of the primary",
                DEAF_POLL_SECONDS,
                extra={"action": "tail_deaf"},
            )
