"""The end of the process that follows the journal: what the tail says goes on to every worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio

from stream_server.domain.transition import Read, Transition
from stream_server.journal.run_store import Runs
from stream_server.journal.undecodable_rows import Causes
from stream_server.protocol.cursor import Cursor
from stream_server.protocol.frames import ResetReason
from stream_server.server.journal_service import Upstream
from stream_server.server.metric_families import Family, added_up
from stream_server.server.workers.channel import Channel, UndecodableMessage, packed
from stream_server.server.workers.messages import (
    Anew,
    Ask,
    Batch,
    Begin,
    Counted,
    Message,
    Reconnect,
    Resync,
    Scrape,
    Serving,
    Standing,
    Sums,
    Up,
)

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often workers are asked what they have counted, so that little is forgotten when one dies."""

PATIENCE_SECONDS = 30.0
"""For how long a worker may say nothing, also after its start, before it is taken for dead."""

SCRAPE_SECONDS = 1.0
"""How long a scrape waits for the answers of all workers; who is late is told as it was before."""


class Member:
    """A worker, as the relay sees it."""

    def __init__(self, channel: Channel[Up]) -> None:
        self.channel = channel
        self.serving = False
        self.watching = False
        self.families: list[Family] = []
        """What it has counted when it was asked last."""

        self.asked: dict[int, asyncio.Future[None]] = {}


class Relay:
    """Whom the tail tells, for all workers: a `tail.Audience`.

    Args:
        runs: Whose connections are made anew when the database server may be another one.
        wanted: How many workers there should be.
        on_message_failed: Called for each message of a worker that cannot be decoded.
    """

    def __init__(self, runs: Runs, wanted: int, on_message_failed: Callable[[], None]) -> None:
        self._runs = runs
        self._wanted = wanted
        self._on_message_failed = on_message_failed
        self._causes = Causes()
        self._members: set[Member] = set()
        self._gone: list[Family] = []
        """What those have counted that are gone: a sum must not shrink."""

        self._cursor: Cursor | None = None
        self._on_watch: Callable[[], None] = lambda: None
        self._upstream: Upstream | None = None
        self._number = 0

    # What the tail says.

    @property
    def watching(self) -> bool:
        """Whether anything is watched in any worker."""
        return any(member.watching for member in self._members)

    def on_watch(self, call: Callable[[], None]) -> None:
        """Have something called whenever somebody begins to watch."""
        self._on_watch = call

    def wants_body(self, transition: Transition) -> bool:  # the question is the same for all
        """Want what tasks say in all runs: that somebody begins to watch one is heard here too late."""
        return True

    def begin(self, cursor: Cursor) -> None:
        """Say from where on batches will come."""
        self._cursor = cursor
        self._tell(Begin(cursor))

    def dispatch(self, transitions: Sequence[Transition], cursor: Cursor, read: Read | None) -> None:
        """Hand on a batch."""
        self._cursor = cursor
        self._tell(Batch(list(transitions), cursor, read))

    def begin_anew(self, cursor: Cursor, reason: ResetReason) -> None:
        """Say that what was known may not be true any more."""
        self._cursor = cursor
        self._tell(Anew(cursor, reason))

    async def reconnect(self, cursor: Cursor) -> None:
        """Say that the database server may be another one."""
        await self._runs.refresh()
        self._tell(Reconnect(cursor))

    # The workers.

    @property
    def serving(self) -> int:
        """How many workers serve."""
        return sum(member.serving for member in self._members)

    def attend(self, upstream: Upstream) -> None:
        """Tell workers from now on how the tail is doing."""
        self._upstream = upstream

    def stand(self) -> None:
        """Tell every worker how tail and workers are doing now."""
        self._tell(self._standing())

    async def converse(self, channel: Channel[Up]) -> None:
        """Tell a worker everything, and do what it asks, for as long as it lives.

        Raises:
            TimeoutError: It has said nothing for so long that it will not any more.
        """
        member = Member(channel)
        if self._cursor is not None:
            channel.send(Begin(self._cursor))
        self._members.add(member)
        self.stand()
        try:
            while True:
                try:
                    with anyio.fail_after(PATIENCE_SECONDS):
                        message = await channel.receive()
                except UndecodableMessage as error:
                    self._skip(error)
                else:
                    self._hear(member, message)
        except EOFError:
            return
        finally:
            self._members.discard(member)
            self._gone = [family for family in added_up([self._gone, member.families]) if family.counts]
            for answered in member.asked.values():
                answered.cancel()
            channel.close()
            self.stand()

    async def beat(self) -> None:
        """Ask workers now and then what they have counted, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self.stand()
            await self._ask()

    async def families(self) -> list[Family]:
        """Return what all workers have counted, those included that are gone."""
        await self._ask()
        return added_up([self._gone, *(member.families for member in self._members)])

    def _skip(self, error: UndecodableMessage) -> None:
        self._on_message_failed()
        if self._causes.is_new(str(error)):
            log.error("Skipped a message of a worker: %s", error, extra={"action": "message_failed"})

    def _hear(self, member: Member, message: Up) -> None:
        if isinstance(message, Counted):
            member.watching, member.families = message.watching, message.families
            if (answered := member.asked.pop(message.number, None)) is not None and not answered.done():
                answered.set_result(None)
        elif isinstance(message, Scrape):
            task = asyncio.create_task(self._answer(member, message.number), name="scrape")
            _scrapes.add(task)
            task.add_done_callback(_scrapes.discard)
        elif isinstance(message, Serving):
            member.serving = True
            self.stand()
        elif isinstance(message, Resync):
            if self._cursor is not None:
                # The channel keeps the order: batches after this cursor follow this message.
                member.channel.send(Anew(self._cursor, "transitions_lost"))
        else:
            member.watching = True
            self._on_watch()

    async def _answer(self, member: Member, number: int) -> None:
        assert self._upstream is not None, "workers are started when there is one"
        families = added_up([await self._upstream.families(), await self.families()])
        member.channel.send(Sums(number, families))

    async def _ask(self) -> None:
        self._number += 1
        number, answers = self._number, []
        for member in self._members:
            answered = member.asked[number] = asyncio.get_running_loop().create_future()
            answers.append(answered)
            member.channel.send(Ask(number))
        if answers:
            await asyncio.wait(answers, timeout=SCRAPE_SECONDS)

    def _standing(self) -> Standing:
        assert self._upstream is not None, "workers are started when there is one"
        status, missing = self._upstream.status, self._wanted - self.serving
        problems = [*status.problems]
        if missing:
            problems.append(
                f"{missing} of {self._wanted} workers do not serve yet, or have died and are being replaced"
            )
        return Standing(status.connected, status.hears, problems, self._upstream.warnings)

    def _tell(self, message: Message) -> None:
        data = packed(message)
        for member in self._members:
            member.channel.write(data)


_scrapes: set[asyncio.Task[None]] = set()
