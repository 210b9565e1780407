"""The runs that are watched in this process: each is read once, kept current, and forgotten when nobody watches it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from stream_server.domain.outcome import Values
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.errors import RunNotFound, Unavailable
from stream_server.hub.run_feed import Feed
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import Cursor
from stream_server.protocol.frames import ResetReason

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

RETRY_SECONDS = 0.5
"""How long to wait before reading again, where PostgreSQL did not answer."""


class RunSource(Protocol):
    """Where runs are read from: `stream_server.journal.postgres.Runs`."""

    async def run_state(self, key: RunKey) -> tuple[RunState, Cursor]:
        """Read a run, and the cursor that goes on from there."""

    async def history(self, key: RunKey | None, since: Cursor, *, output: bool = True) -> list[Transition] | None:
        """Read the transitions of a run, or of all, that a cursor has not seen; `None` where they can't all be told.

        What tasks have said is left out of them unless that is wanted (`output`).
        """

    async def lacks(self, cursor: Cursor) -> bool:
        """Tell whether the journal has another history than the one that a cursor comes from."""

    async def values(self, key: RunKey, task_ids: Collection[str]) -> Values:
        """Read what tasks of a run have returned."""

    async def refresh(self) -> None:
        """Make all connections anew: the server may be another one."""


@dataclass(eq=False, slots=True)
class Watched:
    """A feed, and what is under way for it."""

    feed: Feed
    loading: asyncio.Task[None] | None = None
    fetching: asyncio.Task[None] | None = None
    holders: int = 0
    """How many watch it, or wait to."""


class WatchedRuns:
    """All watched runs.

    Args:
        source: Where they are read from.
        cursor: Tells how far the journal has been read.
    """

    def __init__(self, source: RunSource, cursor: Callable[[], Cursor]) -> None:
        self._source = source
        self._cursor = cursor
        self._runs: dict[RunKey, Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, key: RunKey) -> Watched | None:
        """Return a run, if it is watched."""
        return self._runs.get(key)

    async def hold(self, key: RunKey) -> Watched:
        """Keep a run, which has been read then, until `let_go`; those who come at once share the reading.

        Raises:
            RunNotFound: Airflow knows no such run.
            Unavailable: It can't be read now.
        """
        watched = self._runs.get(key)
        if watched is None:
            watched = self._runs[key] = Watched(Feed(key))
            watched.loading = self._task(self._load(watched), "load")
        watched.holders += 1
        try:
            await self._until_read(watched)
        except BaseException:
            self.let_go(watched)
            raise
        return watched

    def let_go(self, watched: Watched) -> None:
        """Keep a run no longer for one of those who held it."""
        watched.holders -= 1
        if watched.holders == 0:
            self._strike(watched)
            for task in (watched.loading, watched.fetching):
                if task is not None:
                    task.cancel()

    def dispatch(self, transitions: Sequence[Transition], cursor: Cursor) -> None:
        """Follow a batch."""
        batches: dict[Watched, list[Transition]] = {}
        for transition in transitions:
            watched = self._runs.get(RunKey(transition.dag_id, transition.run_id))
            if watched is not None:
                batches.setdefault(watched, []).append(transition)
        for watched, batch in batches.items():
            with self._isolating(watched):
                watched.feed.apply(batch, cursor)
                self.fetch_wanted(watched)

    def begin_anew(self, reason: ResetReason) -> None:
        """Read every run again: what was known of it may not be true any more."""
        for watched in list(self._runs.values()):
            self._restart(watched, reason)

    async def reconnect(self, cursor: Cursor) -> None:
        """Go on at a cursor with a server that may be another one.

        Runs that were read after it, or are being read, are read again: nobody can say whether what was read is there.
        """
        await self._source.refresh()
        for watched in list(self._runs.values()):
            if not watched.feed.is_behind(cursor):
                self._restart(watched, "journal_changed")

    def fetch_wanted(self, watched: Watched) -> None:
        """Read the return values that a run's watchers want, unless that is under way."""
        if watched.feed.wanted and watched.fetching is None:
            watched.fetching = self._task(self._fetch(watched), "fetch")

    async def close(self) -> None:
        """Stop all reading."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_read(self, watched: Watched) -> None:
        while watched.feed.run is None:
            loading = watched.loading
            assert loading is not None, "a feed that has not started is being loaded"
            await asyncio.wait({loading})
            if watched.loading is loading:
                loading.result()
        if self._runs.get(watched.feed.key) is not watched:
            raise Unavailable("The server lost the state of this run; try again")

    def _strike(self, watched: Watched) -> None:
        """Strike a run off the list: whoever asks for it next begins anew."""
        if self._runs.get(watched.feed.key) is watched:
            del self._runs[watched.feed.key]

    def _restart(self, watched: Watched, reason: ResetReason) -> None:
        watched.feed.restart()
        watched.loading = self._task(self._reload(watched, reason), "reload")

    async def _load(self, watched: Watched) -> None:
        try:
            run, loaded_at = await self._source.run_state(watched.feed.key)
        except BaseException:
            if watched.loading is asyncio.current_task():
                self._strike(watched)
            raise
        if watched.loading is asyncio.current_task():
            watched.feed.start(run, loaded_at)

    async def _reload(self, watched: Watched, reason: ResetReason) -> None:
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
        with self._isolating(watched):
            watched.feed.begin_anew(reason, self._cursor())
            self.fetch_wanted(watched)

    async def _fetch(self, watched: Watched) -> None:
        """Read return values for as long as the feed wants some."""
        try:
            while task_ids := watched.feed.wanted:
                loading = watched.loading
                values = await self._patiently(self._source.values, watched.feed.key, task_ids)
                if watched.loading is not loading:
                    # Everything has begun anew meanwhile, perhaps with another database.
                    continue
                with self._isolating(watched):
                    watched.feed.receive(task_ids, values, self._cursor())
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
    def _isolating(self, watched: Watched) -> Iterator[None]:
        """Keep a fault in the state of one run from those who watch others."""
        try:
            yield
        except Exception:
            log.exception("Lost the state of run %s", watched.feed.key)
            self._close(watched, "The server lost the state of this run")

    def _close(self, watched: Watched, reason: str) -> None:
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
