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

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import ReadTiming, Transition
from stream_server.errors import Draining, JournalUnreachable
from stream_server.hub.firehose import Filter, Firehose, ReadPermissions, replay, required_resources, reset_wires
from stream_server.hub.observer import HubObserver, MultiplexConnection
from stream_server.hub.run_feed import SubscriberGroup
from stream_server.hub.subscription import Subscription
from stream_server.hub.watch import Stay
from stream_server.hub.watched_runs import RunSource, WatchedRun, WatchedRuns
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumePoint, ResumeToken
from stream_server.protocol.frames import Reset, ResetReason
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

CATCH_UP_SECONDS = 3.0
"""How long a client waits whose cursor is ahead of us."""

DRAIN_RETRY_MS = (500, 3000)
"""Bounds of the random delay that drained clients are told to wait before they connect again."""

SHUTTING_DOWN = "The server is shutting down"


Watch: TypeAlias = tuple[RunKey, WatchOptions, ResumePoint | None]
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

    def __init__(self, source: RunSource, *, max_queued_bytes: int, observer: HubObserver | None = None) -> None:
        self._source = source
        self._observer = observer
        self._max_queued_bytes = max_queued_bytes
        self._runs = WatchedRuns(source, self._current_cursor)
        self._firehose = Firehose()
        self._subscriptions: set[Subscription] = set()
        self._connections: set[MultiplexConnection] = set()
        self._idle = asyncio.Event()
        self._cursor: JournalPosition | None = None
        self._cursor_moved = asyncio.Event()
        self._notify_subscribed: Callable[[], None] = lambda: None
        self._notify_run_watched: Callable[[RunKey], None] = lambda _: None
        self.is_draining = False
        """Whether this server is shutting down."""

    # What the tail says.

    def start(self, cursor: JournalPosition) -> None:
        """Say from where on batches will come. Before that nobody can join, since something could be missed."""
        self._cursor = cursor

    def dispatch(
        self, transitions: Sequence[Transition], cursor: JournalPosition, read: ReadTiming | None = None
    ) -> None:
        """Hand a batch to those who watch its runs."""
        self._move_cursor(cursor)
        self._firehose.dispatch(transitions, cursor, time.monotonic())
        self._runs.dispatch(transitions, cursor)
        if read is not None and self._observer is not None:
            self._observer.record_dispatch(read)

    def resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        """Tell everybody anew: what was known may not be true any more."""
        self._move_cursor(cursor)
        self._firehose.resync(reason, cursor)
        self._runs.resync(reason)

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Go on at a cursor with a server that may be another one."""
        await self._runs.reconnect(cursor)

    def on_subscribe(self, call: Callable[[], None]) -> None:
        """Have something called whenever somebody begins to watch."""
        self._notify_subscribed = call

    def on_run_watched(self, call: Callable[[RunKey], None]) -> None:
        """Have something called with the run that somebody begins to watch."""
        self._notify_run_watched = call

    # What can be asked.

    @property
    def is_live(self) -> bool:
        """Whether the tail has begun, so that runs can be watched."""
        return self._cursor is not None

    @property
    def has_subscribers(self) -> bool:
        """Whether anything is watched."""
        return bool(self._runs or self._firehose)

    @property
    def cursor(self) -> JournalPosition:
        """How far the journal has been read.

        Raises:
            JournalUnreachable: It has not been reached yet.
            Draining: This server is shutting down.
        """
        if self.is_draining:
            raise Draining
        if self._cursor is None:
            raise JournalUnreachable("The journal has not been reached yet")
        return self._cursor

    def wants_output_of(self, transition: Transition) -> bool:
        """Tell whether somebody wants to know what a task has said."""
        return self.is_watched(RunKey(transition.dag_id, transition.run_id)) or self._firehose.wants_output_of(
            transition
        )

    def is_watched(self, key: RunKey) -> bool:
        """Whether somebody watches a run."""
        return self._runs.get(key) is not None

    def is_reading_values(self, key: RunKey) -> bool:
        """Whether return values of a run are being read just now."""
        watched = self._runs.get(key)
        return watched is not None and watched.fetch_task is not None

    def run_state(self, key: RunKey) -> RunState | None:
        """Return what is known of a run, if it is watched."""
        watched = self._runs.get(key)
        return None if watched is None else watched.feed.run_state

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

    def subscribe(
        self, key: RunKey, question: WatchOptions, *, since: ResumePoint | None = None
    ) -> Stay[Watch, WatchedRun]:
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

    async def come(self, asked: Watch) -> tuple[WatchedRun, Subscription]:
        """Implement `stay.Host`."""
        assert self.cursor, "it raises where there is none"
        key, question, since = asked
        began = time.monotonic()
        why_not = None if since is None else await self._find_reset_reason(since.token)
        watched = await self._runs.acquire(key)
        try:
            self._notify_subscribed()
            self._notify_run_watched(key)
            if since is None or since.token is None or why_not is not None:
                subscription = self._subscribe_fresh(watched, question, None if since is None else why_not)
            else:
                subscription = await self._resume(watched, question, since.token, unborn=since.before_creation)
        except BaseException:
            self._runs.release(watched)
            raise
        self._record_join(began, since)
        return watched, subscription

    def leave(self, place: WatchedRun, subscription: Subscription) -> None:
        """Implement `stay.Host`."""
        self._leave_feed(place, subscription)
        self._runs.release(place)

    @asynccontextmanager
    async def subscribe_firehose(
        self, wanted: Filter, *, since: ResumePoint | None = None, readable: ReadPermissions | None = None
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
        why_not = None if since is None else await self._find_reset_reason(since.token)
        subscription, position = Subscription(self._max_queued_bytes), self.cursor
        self._firehose.add(wanted, subscription, position, time.monotonic(), readable)
        self._subscriptions.add(subscription)
        self._notify_subscribed()
        try:
            if since is not None:
                subscription.prepend(await self._replay_firehose(wanted, since, position, why_not, readable))
            self._record_join(began, since)
            yield subscription
        finally:
            self._firehose.remove(subscription)
            self._discard(subscription)

    def update_permissions(self, subscription: Subscription, readable: ReadPermissions | None) -> None:
        """Tell somebody who follows many runs those of other DAGs, from the next batch on."""
        self._firehose.update_permissions(subscription, readable, time.monotonic())

    @contextmanager
    def register_connection(self, connection: MultiplexConnection) -> Iterator[None]:
        """Have a connection that lives longer than its streams closed when this server shuts down."""
        self._connections.add(connection)
        if self.is_draining:
            connection.disconnect(CloseCode.DRAINING, SHUTTING_DOWN)
        try:
            yield
        finally:
            self._connections.discard(connection)
            self._notify_if_idle()

    def _subscribe_fresh(self, watched: WatchedRun, question: WatchOptions, reset: ResetReason | None) -> Subscription:
        """Let somebody watch who knows nothing, or must forget what he knows."""
        subscription = Subscription(self._max_queued_bytes)
        self._join_feed(watched, question, subscription)
        if reset is not None:
            key = watched.feed.key
            subscription.prepend([Wire(Reset(dag_id=key.dag_id, run_id=key.run_id, reason=reset))])
        return subscription

    async def _resume(
        self, watched: WatchedRun, question: WatchOptions, token: ResumeToken, *, unborn: bool
    ) -> Subscription:
        """Let somebody watch who wants to hear everything since a cursor. What comes meanwhile waits behind it."""
        feed, subscription = watched.feed, Subscription(self._max_queued_bytes)
        if feed.reveals(question, token):
            return self._subscribe_fresh(watched, question, "access_changed")
        subscription.knows_outcome = token.sent_outcome is not None
        channel, position = self._join_feed(watched, question, subscription, opening=False)
        try:
            history = await self._source.read_history(feed.key, token.position)
            if feed.run_state is None:
                # Everything begins anew, and he is told so when it has.
                return subscription
            missed = None if history is None else feed.replay(history, channel, position, token, unborn=unborn)
        except BaseException:
            self._leave_feed(watched, subscription)
            raise
        if missed is None:
            self._leave_feed(watched, subscription)
            return self._subscribe_fresh(watched, question, "cursor_expired" if history is None else "revoked")
        subscription.prepend(missed)
        return subscription

    async def _replay_firehose(
        self,
        wanted: Filter,
        since: ResumePoint,
        position: JournalPosition,
        why_not: ResetReason | None,
        readable: ReadPermissions | None,
    ) -> list[Wire]:
        if since.token is None or why_not is not None:
            return reset_wires(why_not or "cursor_damaged", position)
        history = await self._source.read_history(None, since.token.position, output=wanted.wants_output)
        if history is None:
            return reset_wires("cursor_expired", position)
        allowed = None if readable is None else await readable.filter_readable(required_resources(wanted, history))
        return replay(wanted, history, position, since.token, allowed)

    async def _find_reset_reason(self, token: ResumeToken | None) -> ResetReason | None:
        """Return why a client can't resume from a token, or `None` if it can."""
        if token is None:
            return "cursor_damaged"
        position = token.position
        if position.epoch != self.cursor.epoch:
            return "cursor_foreign"
        with anyio.move_on_after(CATCH_UP_SECONDS):
            # It may come from a replica that is ahead of us.
            while not self.cursor.covers(position):
                await self._cursor_moved.wait()
        known = self.cursor.covers(position) and not await self._source.is_foreign(position)
        return None if known else "cursor_foreign"

    def _join_feed(
        self, watched: WatchedRun, question: WatchOptions, subscription: Subscription, *, opening: bool = True
    ) -> tuple[SubscriberGroup, JournalPosition]:
        joined = watched.feed.add_subscription(question, subscription, self.cursor, opening=opening)
        self._subscriptions.add(subscription)
        self._runs.start_fetch(watched)
        return joined

    def _leave_feed(self, watched: WatchedRun, subscription: Subscription) -> None:
        watched.feed.remove_subscription(subscription)
        self._discard(subscription)

    def _record_join(self, began: float, since: ResumePoint | None) -> None:
        if self._observer is not None:
            self._observer.record_join(time.monotonic() - began, resumed=since is not None)

    def _discard(self, subscription: Subscription) -> None:
        if subscription.closed is not None and self._observer is not None:
            self._observer.record_close(CloseCode(subscription.closed.code))
        self._subscriptions.discard(subscription)
        self._notify_if_idle()

    def _notify_if_idle(self) -> None:
        if not self._subscriptions and not self._connections:
            self._idle.set()

    def _move_cursor(self, cursor: JournalPosition) -> None:
        self._cursor = cursor
        self._cursor_moved.set()
        self._cursor_moved = asyncio.Event()

    def _current_cursor(self) -> JournalPosition:
        assert self._cursor is not None, "nothing is watched before the tail has begun"
        return self._cursor

    # The end.

    async def drain(self, grace: float) -> None:
        """Refuse new watchers, tell those that there are to connect elsewhere, and wait until they are gone.

        Args:
            grace: Seconds to wait at most.
        """
        self.is_draining = True
        for subscription in list(self._subscriptions):
            delay = random.randint(*DRAIN_RETRY_MS)  # noqa: S311 # not for secrets
            subscription.disconnect(CloseCode.DRAINING, SHUTTING_DOWN, retry_ms=delay)
        for connection in list(self._connections):
            connection.disconnect(CloseCode.DRAINING, SHUTTING_DOWN)
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
