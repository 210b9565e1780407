"""The runs that are watched in this process: each is read once, kept current, and forgotten when nobody watches it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

from stream_server.domain.outcome import ReturnValues
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.transition import Transition
from stream_server.errors import RunNotFound, Unavailable
from stream_server.hub.run_feed import RunFeed
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

RETRY_SECONDS = 0.5
"""How long to wait before reading again, where PostgreSQL did not answer."""


class RunSource(Protocol):
    """Where runs are read from: `stream_server.journal.postgres.Runs`."""

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        """Read a run, and the cursor that goes on from there."""

    async def read_history(
        self, key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        """Read the transitions of a run, or of all, that a cursor has not seen; `None` where they can't all be told.

        What tasks have said is left out of them unless that is wanted (`output`).
        """

    async def is_foreign(self, cursor: JournalPosition) -> bool:
        """Tell whether the journal has another history than the one that a cursor comes from."""

    async def read_values(self, key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        """Read what tasks of a run have returned."""

    async def reconnect(self) -> None:
        """Make all connections anew: the server may be another one."""


@dataclass(eq=False, slots=True)
class WatchedRun:
    """A feed, and what is under way for it."""

    feed: RunFeed
    load_task: asyncio.Task[None] | None = None
    fetch_task: asyncio.Task[None] | None = None
    watcher_count: int = 0
    """How many watch it, or wait to."""


class WatchedRuns:
    """All watched runs.

    Args:
        source: Where they are read from.
        cursor: Tells how far the journal has been read.
    """

    def __init__(self, source: RunSource, cursor: Callable[[], JournalPosition]) -> None:
        self._source = source
        self._cursor = cursor
        self._runs: dict[RunKey, WatchedRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, key: RunKey) -> WatchedRun | None:
        """Return a run, if it is watched."""
        return self._runs.get(key)

    async def acquire(self, key: RunKey) -> WatchedRun:
        """Keep a run, which has been read then, until `let_go`; those who come at once share the reading.

        Raises:
            RunNotFound: Airflow knows no such run.
            Unavailable: It can't be read now.
        """
        watched = self._runs.get(key)
        if watched is None:
            watched = self._runs[key] = WatchedRun(RunFeed(key))
            watched.load_task = self._create_task(self._load(watched), "load")
        watched.watcher_count += 1
        try:
            await self._wait_until_loaded(watched)
        except BaseException:
            self.release(watched)
            raise
        return watched

    def release(self, watched: WatchedRun) -> None:
        """Keep a run no longer for one of those who held it."""
        watched.watcher_count -= 1
        if watched.watcher_count == 0:
            self._discard(watched)
            for task in (watched.load_task, watched.fetch_task):
                if task is not None:
                    task.cancel()

    def dispatch(self, transitions: Sequence[Transition], cursor: JournalPosition) -> None:
        """Follow a batch."""
        batches: dict[WatchedRun, list[Transition]] = {}
        for transition in transitions:
            watched = self._runs.get(RunKey(transition.dag_id, transition.run_id))
            if watched is not None:
                batches.setdefault(watched, []).append(transition)
        for watched, batch in batches.items():
            with self._isolate_failure(watched):
                watched.feed.apply(batch, cursor)
                self.start_fetch(watched)

    def resync(self, reason: ResetReason) -> None:
        """Read every run again: what was known of it may not be true any more."""
        for watched in list(self._runs.values()):
            self._start_reload(watched, reason)

    async def reconnect(self, cursor: JournalPosition) -> None:
        """Go on at a cursor with a server that may be another one.

        Runs that were read after it, or are being read, are read again: nobody can say whether what was read is there.
        """
        await self._source.reconnect()
        for watched in list(self._runs.values()):
            if not watched.feed.is_covered_by(cursor):
                self._start_reload(watched, "journal_changed")

    def start_fetch(self, watched: WatchedRun) -> None:
        """Read the return values that a run's watchers want, unless that is under way."""
        if watched.feed.wanted_tasks and watched.fetch_task is None:
            watched.fetch_task = self._create_task(self._fetch_values(watched), "fetch")

    async def close(self) -> None:
        """Stop all reading."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_until_loaded(self, watched: WatchedRun) -> None:
        while watched.feed.run_state is None:
            loading = watched.load_task
            assert loading is not None, "a feed that has not started is being loaded"
            await asyncio.wait({loading})
            if watched.load_task is loading:
                loading.result()
        if self._runs.get(watched.feed.key) is not watched:
            raise Unavailable("The server lost the state of this run; try again")

    def _discard(self, watched: WatchedRun) -> None:
        """Strike a run off the list: whoever asks for it next begins anew."""
        if self._runs.get(watched.feed.key) is watched:
            del self._runs[watched.feed.key]

    def _start_reload(self, watched: WatchedRun, reason: ResetReason) -> None:
        watched.feed.restart_loading()
        watched.load_task = self._create_task(self._reload(watched, reason), "reload")

    async def _load(self, watched: WatchedRun) -> None:
        try:
            run, loaded_at = await self._source.read_run(watched.feed.key)
        except BaseException:
            if watched.load_task is asyncio.current_task():
                self._discard(watched)
            raise
        if watched.load_task is asyncio.current_task():
            watched.feed.start(run, loaded_at)

    async def _reload(self, watched: WatchedRun, reason: ResetReason) -> None:
        try:
            run, loaded_at = await self._retry_until_available(self._source.read_run, watched.feed.key)
        except RunNotFound:
            if watched.load_task is asyncio.current_task():
                self._close(watched, "The run is not in the database any more")
            raise
        if watched.load_task is not asyncio.current_task():
            # Everything begins anew once more; what was read here misses what came since.
            return
        watched.feed.start(run, loaded_at)
        with self._isolate_failure(watched):
            watched.feed.resync(reason, self._cursor())
            self.start_fetch(watched)

    async def _fetch_values(self, watched: WatchedRun) -> None:
        """Read return values for as long as the feed wants some."""
        try:
            while task_ids := watched.feed.wanted_tasks:
                loading = watched.load_task
                values = await self._retry_until_available(self._source.read_values, watched.feed.key, task_ids)
                if watched.load_task is not loading:
                    # Everything has begun anew meanwhile, perhaps with another database.
                    continue
                with self._isolate_failure(watched):
                    watched.feed.add_values(task_ids, values, self._cursor())
        finally:
            watched.fetch_task = None

    async def _retry_until_available(
        self, read: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Read for as long as it takes until PostgreSQL answers; watchers keep their connections."""
        while True:
            try:
                return await read(*args, **kwargs)
            except Unavailable as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(RETRY_SECONDS)

    @contextmanager
    def _isolate_failure(self, watched: WatchedRun) -> Iterator[None]:
        """Keep a fault in the state of one run from those who watch others."""
        try:
            yield
        except Exception:
            log.exception("Lost the state of run %s", watched.feed.key)
            self._close(watched, "The server lost the state of this run")

    def _close(self, watched: WatchedRun, reason: str) -> None:
        watched.feed.disconnect(CloseCode.INTERNAL, reason)
        self._discard(watched)

    def _create_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Those who wait for the task have the error too; this is for the case that nobody does.
            log.debug("%s ended with %r", task.get_name(), error)
