"""Who watches what, and handing each frame to them.

Each watched run is one `Feed`: its state is read once, kept current by the tail, and shared by all its watchers. A
watcher joins between two batches, so that it sees a state and then all that follows from it. Everything happens in one
event loop; what must not be interrupted is not async.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from stream_server.cursor import Cursor
from stream_server.errors import CloseCode, Draining, JournalUnreachable, RunNotFound, Unavailable
from stream_server.feed import Feed
from stream_server.frames import ResetReason
from stream_server.outcome import Question, Values
from stream_server.run_state import RunKey, RunState
from stream_server.subscription import Subscription
from stream_server.transition import Transition

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

RETRY_SECONDS = 0.5
"""How long to wait before reading again, where PostgreSQL did not answer."""

DRAIN_RETRY_MS = (500, 3000)
"""Bounds of the random delay that drained clients are told to wait before they connect again."""


class RunSource(Protocol):
    """Where the hub reads runs from: `stream_server.journal.postgres.Runs`."""

    async def run_state(self, key: RunKey) -> tuple[RunState, Cursor]:
        """Read a run, and the cursor that goes on from there."""

    async def values(self, key: RunKey, task_ids: Collection[str]) -> Values:
        """Read what tasks of a run have returned."""


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
        return bool(self._runs)

    def on_watch(self, call: Callable[[], None]) -> None:
        """Have something called whenever a run begins to be watched."""
        self._on_watch = call

    def begin(self, cursor: Cursor) -> None:
        """Say from where on batches will come. Before that nobody can join, since something could be missed."""
        self._cursor = cursor

    def dispatch(self, transitions: Sequence[Transition], cursor: Cursor) -> None:
        """Hand a batch to those who watch its runs."""
        self._cursor = cursor
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
        self._cursor = cursor
        for watched in list(self._runs.values()):
            watched.feed.restart()
            watched.loading = self._task(self._reload(watched, reason), "reload")

    @asynccontextmanager
    async def watch(self, key: RunKey, question: Question) -> AsyncIterator[Subscription]:
        """Watch a run.

        Raises:
            RunNotFound: Airflow knows no such run.
            UnknownTask: The question names a task that the DAG does not have.
            Unavailable: PostgreSQL does not answer, the journal is missing, or this server is shutting down.
        """
        watched = self._watched(key)
        subscription = Subscription(self._max_queued_bytes)
        watched.holders += 1
        try:
            while watched.feed.run is None:
                assert watched.loading is not None, "a feed that has not started is being loaded"
                await asyncio.shield(watched.loading)
            if self._runs.get(key) is not watched:
                raise Unavailable("The server lost the state of this run; try again")
            self._join(watched, question, subscription)
            yield subscription
        finally:
            self._leave(watched, subscription)

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
        if self.draining:
            raise Draining
        if self._cursor is None:
            raise JournalUnreachable("The journal has not been reached yet")
        watched = self._runs.get(key)
        if watched is None:
            watched = self._runs[key] = _Watched(Feed(key))
            watched.loading = self._task(self._load(watched), "load")
            self._on_watch()
        return watched

    def _join(self, watched: _Watched, question: Question, subscription: Subscription) -> None:
        if self.draining:
            raise Draining
        assert self._cursor is not None, "_watched has seen it"
        watched.feed.join(question, subscription, self._cursor)
        self._subscriptions.add(subscription)
        self._fetch_wanted(watched)

    def _leave(self, watched: _Watched, subscription: Subscription) -> None:
        watched.feed.leave(subscription)
        watched.holders -= 1
        if watched.holders == 0:
            self._strike(watched)
            for task in (watched.loading, watched.fetching):
                if task is not None:
                    task.cancel()
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._idle.set()

    def _strike(self, watched: _Watched) -> None:
        """Strike a run off the list: whoever asks for it next begins anew."""
        if self._runs.get(watched.feed.key) is watched:
            del self._runs[watched.feed.key]

    async def _load(self, watched: _Watched) -> None:
        try:
            run, loaded_at = await self._source.run_state(watched.feed.key)
        except BaseException:
            self._strike(watched)
            raise
        if watched.loading is asyncio.current_task():
            watched.feed.start(run, loaded_at)

    async def _reload(self, watched: _Watched, reason: ResetReason) -> None:
        try:
            run, loaded_at = await self._patiently(self._source.run_state, watched.feed.key)
        except RunNotFound:
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
                values = await self._patiently(self._source.values, watched.feed.key, task_ids)
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
