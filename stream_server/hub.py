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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

import anyio

from stream_server.cursor import Cursor
from stream_server.errors import CloseCode, Draining, JournalUnreachable, RunNotFound, Unavailable
from stream_server.feed import Channel, Feed
from stream_server.firehose import Filter, Firehose, anew, missed
from stream_server.frames import Reset, ResetReason, Wire
from stream_server.outcome import Question, Values
from stream_server.run_state import RunKey, RunState
from stream_server.subscription import Subscription
from stream_server.transition import Transition

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

CATCH_UP_SECONDS = 3.0
"""How long a client waits whose cursor is ahead of us."""

RETRY_SECONDS = 0.5
"""How long to wait before reading again, where PostgreSQL did not answer."""

DRAIN_RETRY_MS = (500, 3000)
"""Bounds of the random delay that drained clients are told to wait before they connect again."""


class RunSource(Protocol):
    """Where the hub reads runs from: `stream_server.journal.postgres.Runs`."""

    async def run_state(self, key: RunKey) -> tuple[RunState, Cursor]:
        """Read a run, and the cursor that goes on from there."""

    async def history(self, key: RunKey | None, since: Cursor) -> list[Transition] | None:
        """Read the transitions of a run, or of all, that a cursor has not seen; `None` where they can't all be told."""

    async def values(self, key: RunKey, task_ids: Collection[str]) -> Values:
        """Read what tasks of a run have returned."""

    async def refresh(self) -> None:
        """Make all connections anew: the server may be another one."""


class Since(NamedTuple):
    """From where on a client wants to hear every transition."""

    cursor: Cursor | None
    """Its place; `None` where what it gave is none."""

    unborn: bool = False
    """Whether the run did not exist then: the client knows nothing of it."""

    @property
    def ended(self) -> bool:
        """Whether the client has seen the end of its stream."""
        return self.cursor is not None and self.cursor.ended


class HubStatistics(NamedTuple):
    """What `Hub.statistics()` tells."""

    runs: int
    subscriptions: int
    queued_frames: int
    queued_bytes: int


@dataclass(eq=False, slots=True)
class _Watched:
    """A feed, and what is under way for it."""

    feed: Feed
    loading: asyncio.Task[None] | None = None
    fetching: asyncio.Task[None] | None = None
    holders: int = 0
    """How many watch it, or wait to."""


class Hub:
    """All watched runs of this process.

    Args:
        source: Where runs are read from.
        max_queued_bytes: Bytes of JSON that may wait for one client before it is closed as too slow.
    """

    def __init__(self, source: RunSource, *, max_queued_bytes: int) -> None:
        self._source = source
        self._max_queued_bytes = max_queued_bytes
        self._runs: dict[RunKey, _Watched] = {}
        self._subscriptions: set[Subscription] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._cursor: Cursor | None = None
        self._moved = asyncio.Event()
        self._firehose = Firehose()
        self._on_watch: Callable[[], None] = lambda: None
        self.draining = False
        """Whether this server is shutting down."""

    @property
    def live(self) -> bool:
        """Whether the tail has begun, so that runs can be watched."""
        return self._cursor is not None

    @property
    def watching(self) -> bool:
        """Whether any run is watched."""
        return bool(self._runs or self._firehose)

    def on_watch(self, call: Callable[[], None]) -> None:
        """Have something called whenever a run begins to be watched."""
        self._on_watch = call

    def begin(self, cursor: Cursor) -> None:
        """Say from where on batches will come. Before that nobody can join, since something could be missed."""
        self._cursor = cursor

    def dispatch(self, transitions: Sequence[Transition], cursor: Cursor) -> None:
        """Hand a batch to those who watch its runs."""
        self._move(cursor)
        self._firehose.dispatch(transitions, cursor, time.monotonic())
        batches: dict[_Watched, list[Transition]] = {}
        for transition in transitions:
            watched = self._runs.get(RunKey(transition.dag_id, transition.run_id))
            if watched is not None:
                batches.setdefault(watched, []).append(transition)
        for watched, batch in batches.items():
            with self._isolating(watched):
                watched.feed.apply(batch, cursor)
                self._fetch_wanted(watched)

    def begin_anew(self, cursor: Cursor, reason: ResetReason) -> None:
        """Read every run again: what was known of it may not be true any more."""
        self._move(cursor)
        self._firehose.begin_anew(reason, cursor)
        for watched in list(self._runs.values()):
            self._restart(watched, reason)

    def _move(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._moved.set()
        self._moved = asyncio.Event()

    async def reconnect(self, cursor: Cursor) -> None:
        """Go on at a cursor with a server that may be another one.

        Runs that were read after it, or are being read, are read again: nobody can say whether what was read is there.
        """
        await self._source.refresh()
        for watched in list(self._runs.values()):
            if not watched.feed.is_behind(cursor):
                self._restart(watched, "journal_changed")

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

    def watched(self, key: RunKey) -> bool:
        """Whether somebody watches a run."""
        return key in self._runs

    def reading(self, key: RunKey) -> bool:
        """Whether return values of a run are being read just now."""
        watched = self._runs.get(key)
        return watched is not None and watched.fetching is not None

    def state(self, key: RunKey) -> RunState | None:
        """Return what is known of a run, if it is watched."""
        watched = self._runs.get(key)
        return None if watched is None else watched.feed.run

    @asynccontextmanager
    async def watch(
        self, key: RunKey, question: Question, *, since: Since | None = None
    ) -> AsyncIterator[Subscription]:
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
        watched = self._watched(key)
        subscription: Subscription | None = None
        watched.holders += 1
        try:
            while watched.feed.run is None:
                loading = watched.loading
                assert loading is not None, "a feed that has not started is being loaded"
                await asyncio.wait({loading})
                if watched.loading is loading:
                    loading.result()
            if self._runs.get(key) is not watched:
                raise Unavailable("The server lost the state of this run; try again")
            if since is None:
                subscription = self._subscription()
                self._join(watched, question, subscription)
            else:
                subscription = await self._go_on(watched, question, since)
            yield subscription
        finally:
            if subscription is not None:
                self._dismiss(watched, subscription)
            self._let_go(watched)

    @asynccontextmanager
    async def follow(self, wanted: Filter, *, since: Since | None = None) -> AsyncIterator[Subscription]:
        """Follow many runs.

        Args:
            wanted: What shall be told.
            since: From where on; by default from now on.

        Raises:
            Unavailable: PostgreSQL does not answer, the journal is missing, or this server is shutting down.
        """
        why_not = None if since is None else await self._refuse(since.cursor)
        subscription, position = self._subscription(), self.cursor
        self._firehose.join(wanted, subscription, position, time.monotonic())
        self._subscriptions.add(subscription)
        self._on_watch()
        try:
            if since is not None:
                subscription.put_first(await self._missed(wanted, since, position, why_not))
            yield subscription
        finally:
            self._firehose.leave(wanted, subscription)
            self._drop(subscription)

    async def _missed(self, wanted: Filter, since: Since, position: Cursor, why_not: ResetReason | None) -> list[Wire]:
        if since.cursor is None or why_not is not None:
            return anew(why_not or "cursor_damaged", position)
        history = await self._source.history(None, since.cursor)
        if history is None:
            return anew("cursor_expired", position)
        return missed(wanted, history, position, since.cursor)

    async def drain(self, grace: float) -> None:
        """Refuse new watchers, tell those that there are to connect elsewhere, and wait until they are gone.

        Args:
            grace: Seconds to wait at most.
        """
        self.draining = True
        for subscription in list(self._subscriptions):
            delay = random.randint(*DRAIN_RETRY_MS)  # noqa: S311 # not for secrets
            subscription.close(CloseCode.DRAINING, "The server is shutting down", retry_ms=delay)
        if not self._subscriptions:
            return
        self._idle.clear()
        try:
            await asyncio.wait_for(self._idle.wait(), grace)
        except asyncio.TimeoutError:
            log.warning("%d streams did not end within %g s", len(self._subscriptions), grace)

    async def close(self) -> None:
        """Stop all reading."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def statistics(self) -> HubStatistics:
        """Tell how much is watched, and how much waits for slow clients."""
        each = [subscription.statistics() for subscription in self._subscriptions]
        return HubStatistics(
            runs=len(self._runs),
            subscriptions=len(each),
            queued_frames=sum(one.queued_frames for one in each),
            queued_bytes=sum(one.queued_bytes for one in each),
        )

    def _watched(self, key: RunKey) -> _Watched:
        """Return a run that is watched already, or begin to load it; those who come at once share the reading."""
        assert self.cursor, "it raises where there is none"
        watched = self._runs.get(key)
        if watched is None:
            watched = self._runs[key] = _Watched(Feed(key))
            watched.loading = self._task(self._load(watched), "load")
            self._on_watch()
        return watched

    def _join(
        self, watched: _Watched, question: Question, subscription: Subscription, *, opening: bool = True
    ) -> tuple[Channel, Cursor]:
        joined = watched.feed.join(question, subscription, self.cursor, opening=opening)
        self._subscriptions.add(subscription)
        self._fetch_wanted(watched)
        return joined

    async def _go_on(self, watched: _Watched, question: Question, since: Since) -> Subscription:
        """Let somebody watch who wants to hear everything since a cursor. What comes meanwhile waits behind it."""
        feed, cursor = watched.feed, since.cursor
        why_not = await self._refuse(cursor)
        if cursor is None or why_not is not None:
            return self._begin_with(why_not or "cursor_damaged", watched, question)
        subscription = self._subscription()
        subscription.knows_outcome = cursor.told is not None
        channel, position = self._join(watched, question, subscription, opening=False)
        try:
            history = await self._source.history(feed.key, cursor)
            if feed.run is None:
                # Everything begins anew, and he is told so when it has.
                return subscription
            missed = None if history is None else feed.missed(history, channel, position, cursor, since.unborn)
        except BaseException:
            self._dismiss(watched, subscription)
            raise
        if missed is None:
            self._dismiss(watched, subscription)
            return self._begin_with("cursor_expired" if history is None else "revoked", watched, question)
        subscription.put_first(missed)
        return subscription

    def _begin_with(self, reason: ResetReason, watched: _Watched, question: Question) -> Subscription:
        """Let somebody watch who must forget what he knows."""
        subscription = self._subscription()
        self._join(watched, question, subscription)
        key = watched.feed.key
        subscription.put_first([Wire(Reset(dag_id=key.dag_id, run_id=key.run_id, reason=reason))])
        return subscription

    def _subscription(self) -> Subscription:
        return Subscription(self._max_queued_bytes)

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
        return None if self.cursor.covers(cursor) else "cursor_foreign"

    def _dismiss(self, watched: _Watched, subscription: Subscription) -> None:
        watched.feed.leave(subscription)
        self._drop(subscription)

    def _drop(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._idle.set()

    def _let_go(self, watched: _Watched) -> None:
        watched.holders -= 1
        if watched.holders == 0:
            self._strike(watched)
            for task in (watched.loading, watched.fetching):
                if task is not None:
                    task.cancel()

    def _strike(self, watched: _Watched) -> None:
        """Strike a run off the list: whoever asks for it next begins anew."""
        if self._runs.get(watched.feed.key) is watched:
            del self._runs[watched.feed.key]

    def _restart(self, watched: _Watched, reason: ResetReason) -> None:
        watched.feed.restart()
        watched.loading = self._task(self._reload(watched, reason), "reload")

    async def _load(self, watched: _Watched) -> None:
        try:
            run, loaded_at = await self._source.run_state(watched.feed.key)
        except BaseException:
            if watched.loading is asyncio.current_task():
                self._strike(watched)
            raise
        if watched.loading is asyncio.current_task():
            watched.feed.start(run, loaded_at)

    async def _reload(self, watched: _Watched, reason: ResetReason) -> None:
        try:
            run, loaded_at = await self._patiently(self._source.run_state, watched.feed.key)
        except RunNotFound:
            if watched.loading is asyncio.current_task():
                self._close(watched, "The run is not in the database any more")
            raise
        if watched.loading is not asyncio.current_task():
            # Everything begins anew once more; what was read here misses what came since.
            return
        watched.feed.start(run, loaded_at)
        assert self._cursor is not None, "begin_anew has set it"
        with self._isolating(watched):
            watched.feed.begin_anew(reason, self._cursor)
            self._fetch_wanted(watched)

    def _fetch_wanted(self, watched: _Watched) -> None:
        if watched.feed.wanted and watched.fetching is None:
            watched.fetching = self._task(self._fetch(watched), "fetch")

    async def _fetch(self, watched: _Watched) -> None:
        """Read return values for as long as the feed wants some."""
        try:
            while task_ids := watched.feed.wanted:
                loading = watched.loading
                values = await self._patiently(self._source.values, watched.feed.key, task_ids)
                if watched.loading is not loading:
                    # Everything has begun anew meanwhile, perhaps with another database.
                    continue
                assert self._cursor is not None, "a feed starts after the tail"
                with self._isolating(watched):
                    watched.feed.receive(task_ids, values, self._cursor)
        finally:
            watched.fetching = None

    async def _patiently(self, read: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Read for as long as it takes until PostgreSQL answers; watchers keep their connections."""
        while True:
            try:
                return await read(*args, **kwargs)
            except Unavailable as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(RETRY_SECONDS)

    @contextmanager
    def _isolating(self, watched: _Watched) -> Iterator[None]:
        """Keep a fault in the state of one run from those who watch others."""
        try:
            yield
        except Exception:
            log.exception("Lost the state of run %s", watched.feed.key)
            self._close(watched, "The server lost the state of this run")

    def _close(self, watched: _Watched, reason: str) -> None:
        watched.feed.close(CloseCode.INTERNAL, reason)
        self._strike(watched)

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Those who wait for the task have the error too; this is for the case that nobody does.
            log.debug("%s ended with %r", task.get_name(), error)
