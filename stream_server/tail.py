"""The loop from the journal to the hub: read all that is new, then wait for the doorbell or the poll interval.

A lost connection loses nothing: the loop connects again and goes on from the same cursor.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field

from stream_server.cursor import Cursor
from stream_server.errors import JournalUnreachable, Unavailable
from stream_server.hub import Hub
from stream_server.journal.listener import Listener
from stream_server.journal.postgres import Reader

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest wait before connecting again; it doubles each time, with jitter."""

CHECK_SECONDS = 30.0
"""How often the triggers are looked at: `airflow db reset` takes them away."""

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


class Tail:
    """Follows the journal of one database for as long as the process lives.

    Args:
        url: Database URL.
        hub: Where batches go.
        poll_interval: Seconds after which to look without having heard the doorbell.
    """

    def __init__(self, url: str, hub: Hub, *, poll_interval: float) -> None:
        self._url = url
        self._hub = hub
        self._poll_interval = poll_interval
        self._bell = asyncio.Event()
        self._cursor: Cursor | None = None
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
            self.status = TailStatus(connected=True, hears=listener.hears, problems=await reader.problems())
            self._report()
            checked = time.monotonic()
            while not listener.lost:
                await self._read(reader)
                if time.monotonic() - checked > CHECK_SECONDS:
                    checked = time.monotonic()
                    self.status.problems = await reader.problems()
                await self._wait(self._poll_interval if listener.hears else DEAF_POLL_SECONDS)
        raise JournalUnreachable("PostgreSQL does not answer (the listening connection was lost)")

    async def _take_up(self, reader: Reader) -> None:
        """Go on from where we were, unless the journal is another one now, or has lost what we have read."""
        now = await reader.now()
        if self._cursor is None:
            self._cursor = now
            self._hub.begin(now)
        elif not now.covers(self._cursor):
            # Numbers of transactions that a crash or failover has lost are given out again, to others.
            log.warning("The journal was replaced or set back; starting anew", extra={"action": "journal_changed"})
            self._cursor = now
            self._hub.begin_anew(now)

    async def _read(self, reader: Reader) -> None:
        assert self._cursor is not None, "_take_up has set it"
        # Cleared before reading: a ring during the read may be for a row that the read did not see.
        self._bell.clear()
        transitions, self._cursor = await reader.after(self._cursor)
        self._hub.dispatch(transitions, self._cursor)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._bell.wait(), seconds)
        except asyncio.TimeoutError:
            return

    def _report(self) -> None:
        if self.status.hears:
            log.info("Following the journal", extra={"action": "tail_connected"})
        else:
            log.warning(
                "LISTEN does not work on this connection (a pooler in transaction mode, or a read replica?);"
                " polling every %g s. Give a direct URL of the primary",
                DEAF_POLL_SECONDS,
                extra={"action": "tail_deaf"},
            )
        for problem in self.status.problems:
            log.error("Streams will be incomplete: %s", problem, extra={"action": "journal_problem"})
