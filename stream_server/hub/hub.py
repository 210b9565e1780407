"""All subscriptions of a process, and the dispatch of each batch to them.

The package docstring states the invariants: positions, failed batches, tasks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import anyio

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.replay import Gap, explain_reset
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import ReadTiming, Transition
from stream_server.errors import Draining, JournalUnreachable, Unavailable
from stream_server.hub.filters import Filter, ReadPermissions
from stream_server.hub.firehose import Firehose
from stream_server.hub.observer import HubObserver, HubStatistics, MultiplexConnection
from stream_server.hub.resuming import encode_replay, replay_firehose
from stream_server.hub.subscriber_group import SubscriberGroup
from stream_server.hub.subscription import QueueTotals, Subscription
from stream_server.hub.watched_runs import RunSource, WatchedRun, WatchedRuns
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumePoint, ResumeToken
from stream_server.protocol.frames import Reset, ResetReason
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

CATCH_UP_SECONDS = 3.0
"""How long a client waits whose token is ahead of this server: it may come from another replica."""

DRAIN_RETRY_MS = (500, 3000)
"""Bounds of the random delay after which drained clients reconnect."""

SHUTTING_DOWN = "The server is shutting down"


class Hub:
    """All subscriptions of this process.

    Args:
        source: Where runs are read from.
        max_queued_bytes: Bytes of JSON that may be queued for one client.
        observer: What counts subscriptions and dispatches.
    """

    def __init__(self, source: RunSource, *, max_queued_bytes: int, observer: HubObserver) -> None:
        self._source = source
        self._observer = observer
        self._max_queued_bytes = max_queued_bytes
        self._runs = WatchedRuns(source, self._current_cursor)
        self._firehose = Firehose()
        self._subscriptions: set[Subscription] = set()
        self._totals = QueueTotals()
        self._connections: set[MultiplexConnection] = set()
        self._idle = asyncio.Event()
        self._cursor: JournalPosition | None = None
        # Replaced by a new event each time the cursor moves, so that each waiter is woken by the next move.
        self._cursor_moved = asyncio.Event()
        self._notify_subscribed: Callable[[], None] = lambda: None
        self._run_watch_callbacks: list[Callable[[RunKey], None]] = []
        self.is_draining = False
        """Whether this server is shutting down."""

    # Called by the tail (`BatchSink`).

    def start(self, cursor: JournalPosition) -> None:
        """Set the position at which batches start. Before that nothing can be watched, since rows could be missed."""
        self._cursor = cursor

    def dispatch(
        self, transitions: Sequence[Transition], cursor: JournalPosition, read: ReadTiming | None = None
    ) -> None:
        """Push the frames of a batch to the subscriptions that match. The cursor covers the batch."""
        self._move_cursor(cursor)
        self._firehose.dispatch(transitions, cursor, time.monotonic())
        self._runs.dispatch(transitions, cursor)
        if read is not None:
            self._observer.record_dispatch(read)

    def resync(self, cursor: JournalPosition, reason: ResetReason) -> None:
        """Reset all subscriptions: rows may be missing, or another history may be true now."""
        self._move_cursor(cursor)
        self._firehose.resync(reason, cursor)
        self._runs.resync(reason)

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Continue at a cursor with a PostgreSQL server that may be another one."""
        await self._runs.reconnect(cursor)

    def on_subscribe(self, call: Callable[[], None]) -> None:
        """Call something for each new subscription."""
        self._notify_subscribed = call

    def on_run_watched(self, call: Callable[[RunKey], None]) -> None:
        """Call something for each new subscription of a run, before the run is read."""
        self._run_watch_callbacks.append(call)

    @property
    def has_subscribers(self) -> bool:
        """Whether anything is watched."""
        return bool(self._runs or self._firehose)

    def wants_output_of(self, transition: Transition) -> bool:
        """Whether any subscription wants the output that a row announces."""
        return self.is_watched(RunKey(transition.dag_id, transition.run_id)) or self._firehose.wants_output_of(
            transition
        )

    def output_filters(self) -> set[Filter]:
        """Return the filters of streams of many runs that include output."""
        return self._firehose.output_filters()

    # State.

    @property
    def is_live(self) -> bool:
        """Whether the tail has started, so that runs can be watched."""
        return self._cursor is not None

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

    def is_watched(self, key: RunKey) -> bool:
        """Whether a run has subscriptions, or is being loaded for one."""
        return self._runs.get(key) is not None

    def is_reading_values(self, key: RunKey) -> bool:
        """Whether return values of a run are being read."""
        watched = self._runs.get(key)
        return watched is not None and watched.fetch_task is not None

    def run_state(self, key: RunKey) -> RunState | None:
        """Return the state of a run; `None` unless it is watched and has been loaded."""
        watched = self._runs.get(key)
        return None if watched is None else watched.feed.run_state

    def statistics(self) -> HubStatistics:
        """Return how much is watched, and how much is queued for slow clients."""
        return HubStatistics(
            runs=len(self._runs),
            subscriptions=len(self._subscriptions),
            queued_frames=self._totals.frames,
            queued_bytes=self._totals.bytes,
        )

    # Subscribing.

    async def subscribe(
        self, key: RunKey, options: WatchOptions, *, resume_from: ResumePoint | None = None, is_client: bool = True
    ) -> Subscription:
        """Watch a run until the subscription is closed.

        Args:
            key: The run.
            options: What is watched of it.
            resume_from: Where a client resumes. By default it gets a snapshot first.
            is_client: Whether a client joins, which the metrics count. The server itself subscribes to read a state.

        Raises:
            RunNotFound: Airflow has no such run.
            UnknownTask: The options name a task that the DAG does not have.
            Unavailable: PostgreSQL does not answer, the journal is missing, or this server is shutting down.
        """
        self._require_cursor()
        started_at = time.monotonic()
        reason = None if resume_from is None else await self._find_reset_reason(resume_from.token)
        for call in self._run_watch_callbacks:
            # Before the run is read: a worker then gets its output with the batches that come meanwhile.
            call(key)
        watched = await self._runs.acquire(key)
        try:
            self._notify_subscribed()
            if resume_from is None or resume_from.token is None or reason is not None:
                subscription = self._subscribe_fresh(watched, options, reason)
            else:
                subscription = await self._resume(
                    watched, options, resume_from.token, before_creation=resume_from.before_creation
                )
        except BaseException:
            self._runs.release(watched)
            raise
        subscription.on_close(partial(self._leave_run, watched, subscription))
        if is_client:
            self._record_join(started_at, resume_from)
        return subscription

    async def subscribe_firehose(
        self,
        wanted: Filter,
        *,
        resume_from: ResumePoint | None = None,
        permissions: ReadPermissions | None = None,
    ) -> Subscription:
        """Watch many runs until the subscription is closed.

        Args:
            wanted: Which transitions are sent.
            resume_from: Where a client resumes; by default at the current position.
            permissions: What may be sent; `None` for everything.

        Raises:
            Unavailable: PostgreSQL does not answer, the journal is missing, or this server is shutting down.
        """
        started_at = time.monotonic()
        reason = None if resume_from is None else await self._find_reset_reason(resume_from.token)
        subscription, position = Subscription(self._max_queued_bytes, self._totals), self.cursor
        self._firehose.add(wanted, subscription, position, time.monotonic(), permissions)
        self._subscriptions.add(subscription)
        subscription.on_close(partial(self._leave_firehose, subscription))
        self._notify_subscribed()
        try:
            if resume_from is not None:
                wires = await replay_firehose(
                    self._source, wanted, resume_from, position, reason, permissions=permissions
                )
                subscription.prepend(wires)
        except BaseException:
            subscription.close()
            raise
        self._record_join(started_at, resume_from)
        return subscription

    def update_permissions(self, subscription: Subscription, permissions: ReadPermissions | None) -> None:
        """Apply other permissions to a subscription of the firehose, from the next batch on."""
        self._firehose.update_permissions(subscription, permissions, time.monotonic())

    @contextmanager
    def register_connection(self, connection: MultiplexConnection) -> Iterator[None]:
        """Disconnect a connection that outlives its streams when this server shuts down."""
        self._connections.add(connection)
        if self.is_draining:
            connection.disconnect(CloseCode.DRAINING, SHUTTING_DOWN)
        try:
            yield
        finally:
            self._connections.discard(connection)
            self._notify_if_idle()

    def _subscribe_fresh(self, watched: WatchedRun, options: WatchOptions, reason: ResetReason | None) -> Subscription:
        """Subscribe a client that gets a snapshot, after a `reset` if what it knows is wrong."""
        subscription = Subscription(self._max_queued_bytes, self._totals)
        self._join_feed(watched, options, subscription)
        if reason is not None:
            key = watched.feed.key
            subscription.prepend([Wire(Reset(dag_id=key.dag_id, run_id=key.run_id, reason=reason))])
        return subscription

    async def _resume(
        self, watched: WatchedRun, options: WatchOptions, token: ResumeToken, *, before_creation: bool
    ) -> Subscription:
        """Subscribe a client that gets everything since its token, in two phases.

        First it joins the feed, so that live frames are queued. Then the journal is read up to the position at which it
        has joined, and the replay is put in front of them.
        """
        feed, subscription = watched.feed, Subscription(self._max_queued_bytes, self._totals)
        if reason := feed.find_reset_reason(options, token):
            return self._subscribe_fresh(watched, options, reason)
        group, position = self._join_feed(watched, options, subscription, token)
        try:
            history = await self._source.read_history(feed.key, token.position)
            wires = None
            if history is not None and feed.run_state is not None:
                gap = Gap(token, position, history)
                wires = await encode_replay(feed.replay, history, group, gap, before_creation=before_creation)
            if feed.run_state is None:
                # The feed is being loaded again. The client gets a `reset` and a snapshot when it is.
                return subscription
        except BaseException:
            self._leave_feed(watched, subscription)
            raise
        if wires is None:
            self._leave_feed(watched, subscription)
            if self._runs.get(feed.key) is not watched:
                # A batch failed meanwhile, and the feed was discarded: it would never send another frame.
                raise Unavailable("The server lost the state of this run; try again")
            return self._subscribe_fresh(watched, options, explain_reset(history))
        subscription.prepend(wires)
        return subscription

    async def _find_reset_reason(self, token: ResumeToken | None) -> ResetReason | None:
        """Return why a client can't resume at a token; `None` if it can."""
        if token is None:
            return "cursor_damaged"
        position = token.position
        if position.epoch != self.cursor.epoch:
            return "cursor_foreign"
        with anyio.move_on_after(CATCH_UP_SECONDS):
            while not self.cursor.covers(position):
                await self._cursor_moved.wait()
        is_known = self.cursor.covers(position) and not await self._source.is_foreign(position)
        return None if is_known else "cursor_foreign"

    def _join_feed(
        self,
        watched: WatchedRun,
        options: WatchOptions,
        subscription: Subscription,
        token: ResumeToken | None = None,
    ) -> tuple[SubscriberGroup, JournalPosition]:
        joined = watched.feed.add_subscription(options, subscription, self.cursor, token)
        self._subscriptions.add(subscription)
        self._runs.start_fetch(watched)
        return joined

    def _leave_feed(self, watched: WatchedRun, subscription: Subscription) -> None:
        watched.feed.remove_subscription(subscription)
        self._discard(subscription)

    def _leave_run(self, watched: WatchedRun, subscription: Subscription) -> None:
        self._leave_feed(watched, subscription)
        self._runs.release(watched)

    def _leave_firehose(self, subscription: Subscription) -> None:
        self._firehose.remove(subscription)
        self._discard(subscription)

    def _record_join(self, started_at: float, resume_from: ResumePoint | None) -> None:
        self._observer.record_join(time.monotonic() - started_at, resumed=resume_from is not None)

    def _discard(self, subscription: Subscription) -> None:
        if subscription.closed is not None:
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

    def _require_cursor(self) -> None:
        _ = self.cursor

    def _current_cursor(self) -> JournalPosition:
        assert self._cursor is not None, "nothing is watched before the tail has started"
        return self._cursor

    # Shutting down.

    async def drain(self, grace: float) -> None:
        """Refuse new subscriptions, disconnect all clients, and wait at most `grace` seconds until they are gone."""
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
        """Cancel all reads."""
        await self._runs.close()
