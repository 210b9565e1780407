"""Who watches what, and handing each frame to them.

Each watched run is one `Feed`: its state is read once, kept current by the tail, and shared by all its watchers. A
watcher joins between two batches, so that it sees a state and then all that follows from it. Everything happens in one
event loop; what must not be interrupted is not async.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple, TypeAlias

import anyio

from stream_server.domain.outcome import Question
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Read, Transition
from stream_server.errors import Draining, JournalUnreachable
from stream_server.hub.firehose import Filter, Firehose, Readable, anew, missed, readings
from stream_server.hub.observer import Connection, Observer
from stream_server.hub.run_feed import Channel
from stream_server.hub.subscription import Subscription
from stream_server.hub.watch import Stay
from stream_server.hub.watched_runs import RunSource, Watched, WatchedRuns
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import Cursor, Since
from stream_server.protocol.frames import Reset, ResetReason
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

CATCH_UP_SECONDS = 3.0
"""How long a client waits whose cursor is ahead of us."""

DRAIN_RETRY_MS = (500, 3000)
"""Bounds of the random delay that drained clients are told to wait before they connect again."""

SHUTTING_DOWN = "The server is shutting down"


Watch: TypeAlias = tuple[RunKey, Question, Since | None]
"""Who watches which run, what he asks of it, and from where on."""


class HubStatistics(NamedTuple):
    """What `Hub.statistics()` tells."""

    runs: int
    subscriptions: int
    queued_frames: int
    queued_bytes: int


class Hub:
    """All who watch something in this process.

    Args:
        source: Where runs are read from.
        max_queued_bytes: Bytes of JSON that may wait for one client before it is closed as too slow.
        observer: Who counts what happens.
    """

    def __init__(self, source: RunSource, *, max_queued_bytes: int, observer: Observer | None = None) -> None:
        self._source = source
        self._observer = observer
        self._max_queued_bytes = max_queued_bytes
        self._runs = WatchedRuns(source, self._position)
        self._firehose = Firehose()
        self._subscriptions: set[Subscription] = set()
        self._connections: set[Connection] = set()
        self._idle = asyncio.Event()
        self._cursor: Cursor | None = None
        self._moved = asyncio.Event()
        self._on_watch: Callable[[], None] = lambda: None
        self._on_run: Callable[[RunKey], None] = lambda _: None
        self.draining = False
        """Whether this server is shutting down."""

    # What the tail says.

    def begin(self, cursor: Cursor) -> None:
        """Say from where on batches will come. Before that nobody can join, since something could be missed."""
        self._cursor = cursor

    def dispatch(self, transitions: Sequence[Transition], cursor: Cursor, read: Read | None = None) -> None:
        """Hand a batch to those who watch its runs."""
        self._move(cursor)
        self._firehose.dispatch(transitions, cursor, time.monotonic())
        self._runs.dispatch(transitions, cursor)
        if read is not None and self._observer is not None:
            self._observer.dispatched(read)

    def begin_anew(self, cursor: Cursor, reason: ResetReason) -> None:
        """Tell everybody anew: what was known may not be true any more."""
        self._move(cursor)
        self._firehose.begin_anew(reason, cursor)
        self._runs.begin_anew(reason)

    async def reconnect(self, cursor: Cursor) -> None:
        """Go on at a cursor with a server that may be another one."""
        await self._runs.reconnect(cursor)

    def on_watch(self, call: Callable[[], None]) -> None:
        """Have something called whenever somebody begins to watch."""
        self._on_watch = call

    def on_run(self, call: Callable[[RunKey], None]) -> None:
        """Have something called with the run that somebody begins to watch."""
        self._on_run = call

    # What can be asked.

    @property
    def live(self) -> bool:
        """Whether the tail has begun, so that runs can be watched."""
        return self._cursor is not None

    @property
    def watching(self) -> bool:
        """Whether anything is watched."""
        return bool(self._runs or self._firehose)

    @property
    def cursor(self) -> Cursor:
        """How far the journal has been read.

        Raises:
            JournalUnreachable: It has not been reached yet.
            Draining: This server is shutting down.
        """
        if self.draining:
            raise Draining
        if self._cursor is None:
            raise JournalUnreachable("The journal has not been reached yet")
        return self._cursor

    def wants_body(self, transition: Transition) -> bool:
        """Tell whether somebody wants to know what a task has said."""
        return self.watched(RunKey(transition.dag_id, transition.run_id)) or self._firehose.wants_body(transition)

    def watched(self, key: RunKey) -> bool:
        """Whether somebody watches a run."""
        return self._runs.get(key) is not None

    def reading(self, key: RunKey) -> bool:
        """Whether return values of a run are being read just now."""
        watched = self._runs.get(key)
        return watched is not None and watched.fetching is not None

    def state(self, key: RunKey) -> RunState | None:
        """Return what is known of a run, if it is watched."""
        watched = self._runs.get(key)
        return None if watched is None else watched.feed.run

    def statistics(self) -> HubStatistics:
        """Tell how much is watched, and how much waits for slow clients."""
        each = [subscription.statistics() for subscription in self._subscriptions]
        return HubStatistics(
            runs=len(self._runs),
            subscriptions=len(each),
            queued_frames=sum(one.queued_frames for one in each),
            queued_bytes=sum(one.queued_bytes for one in each),
        )

    # Watching.

    def watch(self, key: RunKey, question: Question, *, since: Since | None = None) -> Stay[Watch, Watched]:
        """Watch a run.

        Args:
            key: The run.
            question: What is asked of it.
            since: From where on every transition is told; by default a snapshot tells what is known.

        Raises:
            RunNotFound: Airflow knows no such run.
            UnknownTask: The question names a task that the DAG does not have.
            Unavailable: PostgreSQL does not answer, the journal is missing, or this server is shutting down.
        """
        return Stay(self, (key, question, since))

    async def come(self, asked: Watch) -> tuple[Watched, Subscription]:
        """Implement `stay.Host`."""
        assert self.cursor, "it raises where there is none"
        key, question, since = asked
        began = time.monotonic()
        why_not = None if since is None else await self._refuse(since.cursor)
        watched = await self._runs.hold(key)
        try:
            self._on_watch()
            self._on_run(key)
            if since is None or since.cursor is None or why_not is not None:
                subscription = self._begin(watched, question, None if since is None else why_not)
            else:
                subscription = await self._go_on(watched, question, since.cursor, unborn=since.unborn)
        except BaseException:
            self._runs.let_go(watched)
            raise
        self._joined(began, since)
        return watched, subscription

    def leave(self, place: Watched, subscription: Subscription) -> None:
        """Implement `stay.Host`."""
        self._dismiss(place, subscription)
        self._runs.let_go(place)

    @asynccontextmanager
    async def follow(
        self, wanted: Filter, *, since: Since | None = None, readable: Readable | None = None
    ) -> AsyncIterator[Subscription]:
        """Follow many runs.

        Args:
            wanted: What shall be told.
            since: From where on; by default from now on.
            readable: What may be told; `None` for all.

        Raises:
            Unavailable: PostgreSQL does not answer, the journal is missing, or this server is shutting down.
        """
        began = time.monotonic()
        why_not = None if since is None else await self._refuse(since.cursor)
        subscription, position = Subscription(self._max_queued_bytes), self.cursor
        self._firehose.join(wanted, subscription, position, time.monotonic(), readable)
        self._subscriptions.add(subscription)
        self._on_watch()
        try:
            if since is not None:
                subscription.put_first(await self._missed(wanted, since, position, why_not, readable))
            self._joined(began, since)
            yield subscription
        finally:
            self._firehose.leave(subscription)
            self._forget(subscription)

    def show(self, subscription: Subscription, readable: Readable | None) -> None:
        """Tell somebody who follows many runs those of other DAGs, from the next batch on."""
        self._firehose.show(subscription, readable, time.monotonic())

    @contextmanager
    def connection(self, connection: Connection) -> Iterator[None]:
        """Have a connection that lives longer than its streams closed when this server shuts down."""
        self._connections.add(connection)
        if self.draining:
            connection.close(CloseCode.DRAINING, SHUTTING_DOWN)
        try:
            yield
        finally:
            self._connections.discard(connection)
            self._rest()

    def _begin(self, watched: Watched, question: Question, reset: ResetReason | None) -> Subscription:
        """Let somebody watch who knows nothing, or must forget what he knows."""
        subscription = Subscription(self._max_queued_bytes)
        self._join(watched, question, subscription)
        if reset is not None:
            key = watched.feed.key
            subscription.put_first([Wire(Reset(dag_id=key.dag_id, run_id=key.run_id, reason=reset))])
        return subscription

    async def _go_on(self, watched: Watched, question: Question, cursor: Cursor, *, unborn: bool) -> Subscription:
        """Let somebody watch who wants to hear everything since a cursor. What comes meanwhile waits behind it."""
        feed, subscription = watched.feed, Subscription(self._max_queued_bytes)
        if feed.reveals(question, cursor):
            return self._begin(watched, question, "access_changed")
        subscription.knows_outcome = cursor.told is not None
        channel, position = self._join(watched, question, subscription, opening=False)
        try:
            history = await self._source.history(feed.key, cursor)
            if feed.run is None:
                # Everything begins anew, and he is told so when it has.
                return subscription
            missed = None if history is None else feed.missed(history, channel, position, cursor, unborn=unborn)
        except BaseException:
            self._dismiss(watched, subscription)
            raise
        if missed is None:
            self._dismiss(watched, subscription)
            return self._begin(watched, question, "cursor_expired" if history is None else "revoked")
        subscription.put_first(missed)
        return subscription

    async def _missed(
        self,
        wanted: Filter,
        since: Since,
        position: Cursor,
        why_not: ResetReason | None,
        readable: Readable | None,
    ) -> list[Wire]:
        if since.cursor is None or why_not is not None:
            return anew(why_not or "cursor_damaged", position)
        history = await self._source.history(None, since.cursor, output=wanted.wants_output)
        if history is None:
            return anew("cursor_expired", position)
        allowed = None if readable is None else await readable.among(readings(wanted, history))
        return missed(wanted, history, position, since.cursor, allowed)

    async def _refuse(self, cursor: Cursor | None) -> ResetReason | None:
        """Tell why a client can't go on at a cursor, or `None` if it can."""
        if cursor is None:
            return "cursor_damaged"
        if cursor.epoch != self.cursor.epoch:
            return "cursor_foreign"
        with anyio.move_on_after(CATCH_UP_SECONDS):
            # It may come from a replica that is ahead of us.
            while not self.cursor.covers(cursor):
                await self._moved.wait()
        known = self.cursor.covers(cursor) and not await self._source.lacks(cursor)
        return None if known else "cursor_foreign"

    def _join(
        self, watched: Watched, question: Question, subscription: Subscription, *, opening: bool = True
    ) -> tuple[Channel, Cursor]:
        joined = watched.feed.join(question, subscription, self.cursor, opening=opening)
        self._subscriptions.add(subscription)
        self._runs.fetch_wanted(watched)
        return joined

    def _dismiss(self, watched: Watched, subscription: Subscription) -> None:
        watched.feed.leave(subscription)
        self._forget(subscription)

    def _joined(self, began: float, since: Since | None) -> None:
        if self._observer is not None:
            self._observer.joined(time.monotonic() - began, resumed=since is not None)

    def _forget(self, subscription: Subscription) -> None:
        if subscription.closed is not None and self._observer is not None:
            self._observer.closed(CloseCode(subscription.closed.code))
        self._subscriptions.discard(subscription)
        self._rest()

    def _rest(self) -> None:
        if not self._subscriptions and not self._connections:
            self._idle.set()

    def _move(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._moved.set()
        self._moved = asyncio.Event()

    def _position(self) -> Cursor:
        assert self._cursor is not None, "nothing is watched before the tail has begun"
        return self._cursor

    # The end.

    async def drain(self, grace: float) -> None:
        """Refuse new watchers, tell those that there are to connect elsewhere, and wait until they are gone.

        Args:
            grace: Seconds to wait at most.
        """
        self.draining = True
        for subscription in list(self._subscriptions):
            delay = random.randint(*DRAIN_RETRY_MS)  # noqa: S311 # not for secrets
            subscription.close(CloseCode.DRAINING, SHUTTING_DOWN, retry_ms=delay)
        for connection in list(self._connections):
            connection.close(CloseCode.DRAINING, SHUTTING_DOWN)
        if not self._subscriptions and not self._connections:
            return
        self._idle.clear()
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except asyncio.TimeoutError:
            log.warning("%d streams did not end within %g s", len(self._subscriptions), grace)

    async def close(self) -> None:
        """Stop all reading."""
        await self._runs.close()
